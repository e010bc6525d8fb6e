"""`ivmix backup` and `ivmix restore`: after the loss of Redis everything works, and nothing that waited is lost."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.api_keys import digest_of
from service.jobs.job_list import JobFilter
from service.jobs.model import JobState
from service.jobs.rq_queues import GENERATE, TrustedJob, generate_queue
from service.jobs.store import LeaseReply
from service.jobs.usage import UsageStore
from service.maintenance.backup import CHUNK, chunks
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.redis_connection.replication import MARKER
from service.settings_audit import note_settings
from service.storage import StorageRetry
from service.wiring import Services
from tests.backups import Command, Deployment, back_up
from tests.doc_examples import DOCS, example
from tests.factories import complete_job, create_job, deliver_webhooks, make_job
from tests.quick_app import quick_app
from worker.child.upload import Uploader
from worker.scratch import Scratch

FRAMES = np.zeros((2, 32, 32, 3), dtype=np.uint8)


def maintained(services: Services) -> None:
    """What maintenance does within seconds."""
    retention = Retention(services.redis, services.store, services.storage, retention_s=3600, tidy_after_s=0)
    LostJobReaper(services.redis, services.store, retention, grace_s=0, max_attempts=1).run_once()
    retention.run_once()


def snapshot(redis: Any) -> set[str]:
    return {key.decode("latin-1") for key in redis.scan_iter("*")}


def test_after_a_restore_everything_works(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    services, store = deployment.services, deployment.services.store
    queue_before, key_before = deployment.queue, services.keys.find(digest_of(deployment.secret))
    before = {job.id: job for job in store.list(limit=50)[0]}
    usage_before = UsageStore(services.redis).page(date.today() - timedelta(days=2), date.today() + timedelta(days=2))
    file = back_up(command, tmp_path)
    services.redis.flushall()
    ran = command("restore", str(file))
    assert ran.returncode == 0, ran.stderr

    assert services.keys.find(digest_of(deployment.secret)) == key_before
    assert services.keys.find(digest_of(deployment.revoked_secret)) is None
    assert services.webhooks.endpoints.get(deployment.owner, deployment.endpoint.id) == deployment.endpoint
    assert services.webhooks.endpoints.callback_secrets(deployment.owner) == deployment.callback_secrets
    found = {job.id: job for job in store.list(limit=50)[0]}
    running = before[deployment.running.id]
    assert found == before | {running.id: running.model_copy(update={"attempt": 0})}
    assert [job.id for job in store.lists.page(JobFilter(metadata={"project": "shapes"}), limit=5)[0]] == [running.id]
    assert deployment.queue == queue_before
    entry = TrustedJob.fetch(queue_before[0], connection=services.redis, serializer="json")
    assert (entry.func_name, entry.args) == (GENERATE, [queue_before[0]])
    days = date.today() - timedelta(days=2), date.today() + timedelta(days=2)
    assert UsageStore(services.redis).page(*days) == usage_before
    again = store.create(
        make_job(owner=deployment.owner), generate_queue(services.redis, "demo"), idempotency=deployment.idempotency
    )
    assert again.id == deployment.first.id
    deliver_webhooks(services)
    events = {delivery.video_id for delivery in services.webhooks.deliveries.list(deployment.owner)[0]}
    assert events == {deployment.completed.id, deployment.failed.id}


def test_what_waited_and_ran_ends_after_a_restore(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    """One worker survived the loss, the other did not; the deleted video stays deleted."""
    services, store = deployment.services, deployment.services.store
    lost = create_job(store, generate_queue(services.redis, "demo"), owner=deployment.owner)
    store.start(lost.id, "e9")
    services.redis.lrem("rq:queue:gpu-demo", 1, lost.id)
    file = back_up(command, tmp_path)
    services.redis.flushall()
    assert command("restore", str(file)).returncode == 0

    assert store.renew_lease(deployment.running.id, "e2") is LeaseReply.CONTINUE
    assert complete_job(store, deployment.running.id, "e2")
    maintained(services)
    assert deployment.queue[0] == lost.id
    assert store.view_any(deployment.deleted_while_running.id) is None
    for number, job_id in enumerate(deployment.queue):
        assert store.start(job_id, f"n{number}") is not None
        assert complete_job(store, job_id, f"n{number}")
    states = {job.state for job in store.list(limit=50)[0]}
    assert states == {JobState.COMPLETED, JobState.FAILED}
    with TestClient(quick_app(services)) as client:
        headers = {"authorization": f"Bearer {deployment.secret}"}
        assert client.get(f"/v1/videos/{deployment.completed.id}/content", headers=headers).content == b"a video"
        assert client.delete(f"/v1/videos/{deployment.completed.id}", headers=headers).status_code == 200
        assert client.get("/v1/videos", headers={"authorization": "Bearer x"}).status_code == 401


def printed(folder: Path) -> list[list[str]]:
    """Arguments of the three commands in docs/operations.md, for backups in this folder."""
    block = example(DOCS / "operations.md", "bash", "ivmix restore ").replace("/var/backups/ivmix", str(folder), 2)
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


def test_files_stored_after_the_backup_get_their_records(
    deployment: Deployment, command: Command, tmp_path: Path
) -> None:
    """With the commands as printed. Maintenance must not delete meanwhile what it does not know."""
    services, folder = deployment.services, tmp_path / "backups"
    folder.mkdir()
    to_back_up, to_restore, to_recover = printed(folder)
    assert command(*to_back_up).returncode == 0
    (file,) = folder.iterdir()
    assert re.sub(r"\d", "0", file.name) == re.sub(r"\d", "0", Path(to_restore[-1]).name)
    file.rename(to_restore[-1])
    later = services.store.start(create_job(services.store, generate_queue(services.redis, "demo")).id, "e7")
    assert later is not None
    uploader = Uploader(services.storage, Scratch(tmp_path / "scratch"), StorageRetry(30))
    uploader.upload(later, "e7", FRAMES, timings={}, peak_memory_mb=None, on_wait=lambda: None)
    services.redis.flushall()
    note_settings(services.redis, services.settings, services.signer)  # an API has started meanwhile
    services.redis.set(MARKER, 1)
    assert command(*to_restore).returncode == 0
    maintained(services)
    assert services.store.view_any(later.id) is None
    ran = command(*to_recover)
    assert (ran.returncode, f"rebuilt {later.id}" in ran.stdout) == (0, True), ran.stderr
    recovered = services.store.get(later.id)
    assert recovered is not None
    assert recovered.state is JobState.COMPLETED
    assert services.keys.find(digest_of(deployment.secret)) is not None


def test_a_backup_is_never_written_over_what_is_there(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    services = deployment.services
    file = back_up(command, tmp_path)
    ran = command("restore", str(file))
    assert (ran.returncode, "Redis is not empty" in ran.stderr, "--merge" in ran.stderr) == (1, True, True)
    services.store.start(deployment.first.id, "e5")
    services.redis.delete("ivm:keys")
    changed = services.store.get(deployment.first.id)
    for _ in range(2):  # it may be repeated
        assert command("restore", str(file), "--merge").returncode == 0
    assert services.store.get(deployment.first.id) == changed
    assert deployment.queue.count(deployment.queued[0].id) == 1
    assert services.keys.find(digest_of(deployment.secret)) is not None
    assert services.webhooks.outbox.depth() == 2


def test_damaged_files_are_refused_as_a_whole(deployment: Deployment, command: Command, tmp_path: Path) -> None:
    content = back_up(command, tmp_path).read_bytes()
    lines = gzip.decompress(content).splitlines(keepends=True)
    changed = lines[3].replace(b":", b": ", 1)
    later = json.dumps(json.loads(lines[0]) | {"ivmix_backup": 99}).encode() + b"\n"
    damaged = {
        "cut off": content[: len(content) // 2],
        "a line is missing": gzip.compress(b"".join(lines[:2] + lines[3:])),
        "a line is changed": gzip.compress(b"".join([*lines[:3], changed, *lines[4:]])),
        "without an end": gzip.compress(b"".join(lines[:-1])),
        "of a later version": gzip.compress(later + b"".join(lines[1:])),
        "something else": b"PK\x03\x04",
        "another program's": gzip.compress(b'{"a": 1}\n'),
    }
    services = deployment.services
    services.redis.flushall()
    for name, data in damaged.items():
        file = tmp_path / "damaged.gz"
        file.write_bytes(data)
        ran = command("restore", str(file))
        assert (ran.returncode, "Traceback" in ran.stderr, str(file) in ran.stderr) == (1, False, True), name
    assert "ivm:jobs" not in snapshot(services.redis)
    for arguments in (("restore", "absent.gz"), ("backup", "absent/file.gz")):
        assert (command(*arguments).returncode, "absent" in command(*arguments).stderr) == (1, True)


def test_a_backup_while_jobs_change_has_every_job_that_was_accepted_before(
    services: Services, command: Command, tmp_path: Path
) -> None:
    """Jobs are created and end between two reads of the backup; what it has is consistent."""
    redis: Any = services.redis
    queue = generate_queue(services.redis, "demo")
    jobs = [create_job(services.store, queue) for _ in range(30)]
    before, scan = {job.id for job in jobs}, type(services.redis).hgetall
    waiting = iter(jobs)

    def hgetall(self: Any, key: Any) -> Any:
        if str(key).startswith("b'ivm:job:") and (job := next(waiting, None)):
            services.store.start(job.id, "e")
            redis.lrem(queue.key, 1, job.id)
            complete_job(services.store, job.id, "e")
            create_job(services.store, queue)
        return scan(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(services.redis), "hgetall", hgetall)
        file = back_up(command, tmp_path)
    services.redis.flushall()
    assert command("restore", str(file)).returncode == 0
    maintained(services)
    found = {job.id: job for job in services.store.list(limit=100)[0]}
    assert before <= found.keys()
    in_queue = set(generate_queue(services.redis, "demo").job_ids)
    assert {job.id for job in found.values() if job.state is JobState.QUEUED} == in_queue


def test_large_collections_are_read_in_parts(services: Services, command: Command, tmp_path: Path) -> None:
    redis: Any = services.redis
    redis.zadd("ivm:webhook:deliveries:key_a", {f"whd_{number:04}": 0 for number in range(2 * CHUNK)})
    redis.set("ivm:idem:key_a:x", "1", ex=1000)
    file = back_up(command, tmp_path)
    lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    parts = [line for line in lines if line.get("key") == "ivm:webhook:deliveries:key_a"]
    assert len(parts) >= 2
    assert list(map(len, chunks(range(2 * CHUNK + 1)))) == [CHUNK, CHUNK, 1]
    services.redis.flushall()
    assert command("restore", str(file)).returncode == 0
    assert redis.zcard("ivm:webhook:deliveries:key_a") == 2 * CHUNK
    assert 900 < redis.ttl("ivm:idem:key_a:x") <= 1000
