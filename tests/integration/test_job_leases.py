"""The lease of a running job: who holds it, who lost it."""

from __future__ import annotations

from rq import Queue

from service.jobs.keys import lease_key
from service.jobs.model import JobError, Phase
from service.jobs.store import JobStore, LeaseReply
from service.wiring import Services
from tests.factories import complete_job, create_job

ERROR = JobError(code="timeout", message="Too slow.")


def test_a_running_job_has_a_lease_that_expires_by_the_clock_of_redis(services: Services, queue: Queue) -> None:
    store = JobStore(services.redis, lease_s=30)
    job = create_job(store, queue)
    store.start(job.id, "e1")
    assert services.redis.get(lease_key(job.id)) == b'"e1"'
    assert 25_000 < services.redis.pttl(lease_key(job.id)) <= 30_000
    for renew in (
        lambda: store.renew_lease(job.id, "e1"),
        lambda: store.report_progress(job.id, "e1", 1, 20, Phase.SAMPLING),
    ):
        services.redis.pexpire(lease_key(job.id), 1000)
        assert renew() is LeaseReply.CONTINUE
        assert services.redis.pttl(lease_key(job.id)) > 25_000


def test_an_expired_lease_is_renewed_unless_another_execution_has_the_job(
    store: JobStore, queue: Queue, services: Services
) -> None:
    """Redis was unreachable for longer than a lease, and nothing was decided in the meantime."""
    job = create_job(store, queue)
    running = store.start(job.id, "e1")
    assert running is not None
    services.redis.delete(lease_key(job.id))
    assert store.renew_lease(job.id, "e1") is LeaseReply.CONTINUE
    assert not store.requeue(running, "e1", unless_leased=True)
    services.redis.delete(lease_key(job.id))
    assert store.requeue(running, "e1", unless_leased=True)
    assert store.renew_lease(job.id, "e1") is LeaseReply.LOST
    assert services.redis.exists(lease_key(job.id)) == 0


def test_checking_a_lease_does_not_renew_it(store: JobStore, queue: Queue, services: Services) -> None:
    job = create_job(store, queue)
    store.start(job.id, "e1")
    services.redis.delete(lease_key(job.id))
    assert store.check_lease(job.id, "e1") is LeaseReply.CONTINUE
    assert services.redis.exists(lease_key(job.id)) == 0
    store.cancel(job.id)
    assert store.check_lease(job.id, "e1") is LeaseReply.CANCEL
    assert store.check_lease(job.id, "e2") is LeaseReply.LOST


def test_a_worker_that_lost_its_job_changes_nothing(store: JobStore, queue: Queue) -> None:
    job = create_job(store, queue)
    zombie = store.start(job.id, "zombie")
    assert zombie is not None
    store.requeue(zombie, "zombie")
    store.start(job.id, "owner")
    before = store.get(job.id)
    assert store.report_progress(job.id, "zombie", 19, 20, Phase.SAMPLING) is LeaseReply.LOST
    assert not complete_job(store, job.id, "zombie")
    assert not store.fail(job.id, "zombie", ERROR)
    assert store.renew_lease(job.id, "zombie") is LeaseReply.LOST
    assert not store.requeue(zombie, "zombie")
    assert not store.finish_cancel(job.id, "zombie")
    assert store.get(job.id) == before
