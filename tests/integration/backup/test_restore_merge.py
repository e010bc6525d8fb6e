"""`ivmix restore --merge`: into a server that has something; two states are not mixed, and no event is sent twice."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

from service.audit_log import AuditLog
from service.jobs.outbox import LISTENERS, job_of
from service.jobs.record_reader import Idempotency
from service.jobs.rq_queues import generate_queue
from service.jobs.usage import UsageStore
from service.webhook_dispatcher.fan_out import FanOut
from service.wire.video import Renderer
from tests.backups import Command, Deployment, back_up
from tests.factories import create_job, make_job


def test_a_repeated_merge_sends_no_event_again(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    """Into a server that has newer events already."""
    services, outbox = deployment.services, deployment.services.webhooks.outbox
    file = back_up(command, tmp_path)
    services.redis.flushall()
    newer = create_job(services.store, generate_queue(services.redis, "demo"))
    services.redis.sadd(LISTENERS, json.dumps(newer.owner))
    services.store.cancel(newer.id)
    for _ in range(2):
        assert command("restore", str(file), "--merge").returncode == 0
    waiting = [job_of(record).id for _, record in outbox.read(10)]
    assert waiting == [newer.id, deployment.completed.id, deployment.failed.id]
    for entry, _ in outbox.read(10):
        outbox.settle(entry)
    assert command("restore", str(file), "--merge").returncode == 0
    assert outbox.depth() == 0, "they were delivered"


def test_a_merge_into_the_same_server_sends_no_event_again(
    deployment: Deployment, command: Command, tmp_path: Path
) -> None:
    """Neither what waited in the outbox when the backup was made, nor a delivery that was due then."""
    services, deliveries = deployment.services, deployment.services.webhooks.deliveries
    fan_out, files = FanOut(services.webhooks, Renderer(services.settings, services.storage)), list[Path]()
    for folder in (tmp_path / "before", tmp_path / "after"):
        folder.mkdir()
        files.append(back_up(command, folder))
        fan_out.run_once()
    made = deliveries.list(deployment.owner)[0]
    assert {delivery.video_id for delivery in made} == {deployment.completed.id, deployment.failed.id}
    for delivery in made:
        deliveries.fail(delivery, "endpoint_deleted")
    for file in files:
        assert command("restore", str(file), "--merge").returncode == 0
    fan_out.run_once()
    assert services.webhooks.outbox.depth() == 0
    assert {delivery.id for delivery in deliveries.list(deployment.owner)[0]} == {delivery.id for delivery in made}
    assert deliveries.claim(8) == []
    assert deliveries.pending() == 0


def test_a_merge_mixes_no_two_states(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    """A request, a day's usage and the audit log, before the loss and after it."""
    services, owner = deployment.services, deployment.owner
    store, queue, log = services.store, generate_queue(services.redis, "demo"), AuditLog(services.redis)
    idempotency = Idempotency("key-2", "fingerprint")
    store.create_many([make_job(owner=owner) for _ in range(2)], queue, idempotency=idempotency)
    log.record("key.created", "key_1", actor="cli:x@y")
    (created,) = log.newest_first()
    file = back_up(command, tmp_path)
    services.redis.flushall()
    again = store.create(make_job(owner=owner), queue, idempotency=idempotency)
    store.cancel(again.id)
    log.record("key.revoked", "key_2", actor="cli:x@y")
    days = date.today() - timedelta(days=2), date.today() + timedelta(days=2)
    usage = UsageStore(services.redis).page(*days)
    for _ in range(2):
        assert command("restore", str(file), "--merge").returncode == 0
    assert [job.id for job in store.find_by_idempotency_key(owner, idempotency)] == [again.id]
    assert UsageStore(services.redis).page(*days) == usage
    entries = list(log.newest_first())
    assert [entry.action for entry in entries] == ["backup.restored"] * 2 + ["key.revoked", "key.created"]
    assert entries[-1] == created
