"""The promises under faults, kept by real processes: worker parents and children, maintenance, a Valkey.

The engine only sleeps (tests/fake_worker.py), so that tests spend their time on faults.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rq import Queue

from service.jobs.keys import job_key
from service.jobs.model import Job, JobState, Phase
from service.jobs.rq_queues import generate_queue, send_generate
from service.settings import Settings
from service.storage import object_keys
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.processes import child_of, is_running, started, wait_for, worker
from tests.valkey import Valkey

FAKE = "tests.fake_worker"
LEASE_S, BEAT_S = 4.0, 0.4  # far apart, because the machine may be busy
WAIT_S = 90.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def services(server: Valkey, tmp_path: Path) -> Iterator[Services]:
    opened = open_services(Settings(redis_url=server.url, data_dir=tmp_path / "data", lease_s=LEASE_S, beat_s=BEAT_S))
    yield opened
    opened.close()


@pytest.fixture
def environment(server: Valkey, tmp_path: Path) -> dict[str, str]:
    return {
        "IVMIX_REDIS_URL": server.url,
        "IVMIX_DATA_DIR": str(tmp_path / "data"),
        "IVMIX_LEASE_S": str(LEASE_S),
        "IVMIX_BEAT_S": str(BEAT_S),
        "IVMIX_LOOK_S": "0.1",
        "IVMIX_CHECKPOINT_S": "0.05",
        "IVMIX_STALL_TIMEOUT_S": "3",
        "FAKE_GATE": str(tmp_path / "gate"),
    }


@pytest.fixture
def maintenance(environment: dict[str, str]) -> Iterator[None]:
    with started(environment, "service.maintenance"):
        yield


@pytest.fixture
def queue(services: Services) -> Queue:
    return generate_queue(services.redis, "demo")


@pytest.fixture
def submit(services: Services, queue: Queue) -> Callable[..., str]:
    """submit(faults, steps=...) -> job id"""

    def send(faults: str = "", steps: int = 20) -> str:
        generation = make_generation(prompt=f"a clip {faults}", num_inference_steps=steps)
        return services.store.create(Job.new(generation), queue).id

    return send


def now(services: Services, job_id: str) -> Job:
    job = services.store.get(job_id)
    assert job is not None
    return job


def reaches_step(services: Services, job_id: str, step: int) -> None:
    wait_for(lambda: now(services, job_id).step >= step or None, timeout_s=WAIT_S, hint=f"for step {step}")


def reaches(services: Services, job_id: str, state: JobState, *, timeout_s: float = WAIT_S) -> Job:
    def there() -> Job | None:
        job = now(services, job_id)
        return job if job.state is state else None

    return wait_for(there, timeout_s=timeout_s, hint=f"for {state}")


def completed(services: Services, job_id: str) -> Job:
    """Wait until the job is completed and its video is stored."""
    job = reaches(services, job_id, JobState.COMPLETED)
    assert job.output is not None
    assert services.storage.size(job.output.key) == job.output.size_bytes
    return job


# -- the child


def test_killed_child_costs_an_attempt_and_its_job_resumes(
    services: Services, environment: dict[str, str], submit: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = submit("late@15", steps=20)
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 15)
        wait_for(lambda: services.storage.size(object_keys.checkpoint(job_id)))
        Path(environment["FAKE_GATE"]).touch()
        os.kill(child_of(process.pid), signal.SIGKILL)
        job = completed(services, job_id)
        wait_for(
            lambda: services.storage.size(object_keys.checkpoint(job_id)) is None, hint="for its state to be removed"
        )
        assert process.poll() is None, "the parent lives on"
    starts = [line for line in capfd.readouterr().err.splitlines() if line.startswith("from step")]
    assert job.attempt == 2
    assert starts[0] == "from step 0"
    assert int(starts[1].rpartition(" ")[2]) > 0


def test_job_that_kills_its_worker_fails_after_three_attempts_and_the_next_one_runs(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    killer, next_one = submit("die@3"), submit()
    with worker(environment, FAKE):
        failed = reaches(services, killer, JobState.FAILED)
        completed(services, next_one)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt) == ("worker_lost", 3)


def test_hanging_child_is_replaced(services: Services, environment: dict[str, str], submit: Callable[..., str]) -> None:
    hangs, next_one = submit("hang@3"), submit()
    with worker({**environment, "IVMIX_MAX_ATTEMPTS": "1", "IVMIX_STALL_TIMEOUT_S": "1"}, FAKE):
        reaches(services, hangs, JobState.FAILED)
        completed(services, next_one)


def test_child_that_lost_its_device_is_replaced(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """After a fault a CUDA context is unusable: every later job in the same process would fail."""
    breaks, next_one = submit("fail@3"), submit()
    with worker({**environment, "IVMIX_MAX_ATTEMPTS": "1"}, FAKE) as process:
        before = child_of(process.pid)
        reaches(services, breaks, JobState.FAILED)
        completed(services, next_one)
        assert child_of(process.pid) != before


# -- the parent


@pytest.mark.usefixtures("maintenance")
def test_job_of_a_killed_parent_is_requeued_when_its_lease_ends(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 5)
        child = child_of(process.pid)
        process.kill()
        reaches(services, job_id, JobState.QUEUED, timeout_s=10 * LEASE_S)  # tests.faults.recovery_times measures it
        wait_for(lambda: not is_running(child), hint="for the child to end with its parent")
    Path(environment["FAKE_GATE"]).touch()
    with worker(environment, FAKE):
        assert completed(services, job_id).attempt == 2


@pytest.mark.parametrize("signals", [1, 3])
def test_stopped_worker_hands_its_job_back_uncharged_with_its_state(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, signals: int
) -> None:
    first, second = submit(steps=100_000), submit()
    with worker({**environment, "IVMIX_CHECKPOINT_S": "3600"}, FAKE) as process:
        reaches_step(services, first, 10)
        for _ in range(signals):
            process.terminate()
            time.sleep(0.02)
        assert process.wait(30) == 0
    left = now(services, first)
    assert (left.state, left.attempt, left.error) == (JobState.QUEUED, 0, None)
    assert queue.job_ids == [first, second]
    stored = b"".join(services.storage.open(object_keys.checkpoint(first)))
    assert int(stored) >= 10


def test_worker_that_is_stopped_between_taking_and_starting_a_job_hands_it_back(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, tmp_path: Path
) -> None:
    """Stock RQ loses the job there (rq#2236)."""
    job_id = submit(steps=100_000)
    window = tmp_path / "window"
    with worker({**environment, "FAKE_WINDOW": str(window)}, FAKE) as process:
        wait_for(lambda: window.exists() or None)
        process.terminate()
        assert process.wait(30) == 0
    assert (now(services, job_id).state, queue.job_ids) == (JobState.QUEUED, [job_id])
    assert services.redis.llen(queue.intermediate_queue_key) == 0


@pytest.mark.usefixtures("maintenance")
def test_job_of_a_worker_that_is_killed_between_taking_and_starting_is_sent_again(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue, tmp_path: Path
) -> None:
    job_id = submit()
    window = tmp_path / "window"
    with worker({**environment, "FAKE_WINDOW": str(window)}, FAKE) as process:
        wait_for(lambda: window.exists() or None)
        process.kill()
        process.wait()
    wait_for(lambda: queue.job_ids == [job_id] or None, timeout_s=WAIT_S)
    with worker(environment, FAKE):
        assert completed(services, job_id).attempt == 1


@pytest.mark.usefixtures("maintenance")
def test_zombie_that_wakes_up_commits_nothing(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    """Its child went on and finished the video on_wait; so did the worker that has the job now."""
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE) as zombie:
        reaches_step(services, job_id, 5)
        first = now(services, job_id).execution_id
        os.kill(zombie.pid, signal.SIGSTOP)
        with worker(environment, FAKE):
            wait_for(lambda: now(services, job_id).execution_id not in (None, first) or None, timeout_s=WAIT_S)
            Path(environment["FAKE_GATE"]).touch()
            done = completed(services, job_id)
            os.kill(zombie.pid, signal.SIGCONT)
            time.sleep(1)  # in which a zombie would do harm
            assert now(services, job_id) == done
        next_one = submit()
        completed(services, next_one)  # by one of them: the zombie is a worker like any other again
    assert done.execution_id != first

    def is_tidy() -> bool:
        return {file.key.split("/")[2] for file in services.storage.list(object_keys.videos(job_id))} == {
            done.execution_id
        }

    wait_for(is_tidy, timeout_s=WAIT_S, hint="for the zombie's files to be removed")


@pytest.mark.usefixtures("maintenance")
def test_zombie_that_wakes_up_while_another_works_commits_nothing(
    services: Services, environment: dict[str, str], submit: Callable[..., str], tmp_path: Path
) -> None:
    """The job has not ended, so nothing but the execution's id stands in its way."""
    job_id = submit("late@5", steps=10)
    with worker({**environment, "FAKE_GATE": str(tmp_path / "first")}, FAKE) as zombie:
        reaches_step(services, job_id, 5)
        first = now(services, job_id).execution_id
        os.kill(zombie.pid, signal.SIGSTOP)
        with worker({**environment, "FAKE_GATE": str(tmp_path / "second")}, FAKE):
            wait_for(lambda: now(services, job_id).execution_id not in (None, first) or None, timeout_s=WAIT_S)
            second = now(services, job_id).execution_id
            (tmp_path / "first").touch()
            key = f"{object_keys.execution(job_id, str(first))}manifest.json"
            wait_for(lambda: services.storage.size(key) is not None or None, timeout_s=WAIT_S)
            os.kill(zombie.pid, signal.SIGCONT)
            completed(services, submit())  # by the zombie, which therefore has tried
            assert (now(services, job_id).state, now(services, job_id).execution_id) == (JobState.RUNNING, second)
            (tmp_path / "second").touch()
            assert completed(services, job_id).execution_id == second


def test_two_workers_with_one_job_complete_it_once(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE), worker(environment, FAKE):
        reaches_step(services, job_id, 5)
        send_generate(queue, job_id)  # RQ delivers it a second time
        wait_for(lambda: not queue.job_ids or None)
        Path(environment["FAKE_GATE"]).touch()
        done = completed(services, job_id)
        time.sleep(0.5)
        assert now(services, job_id) == done
    assert done.attempt == 1


# -- Redis


def test_running_job_continues_while_redis_is_killed(
    services: Services, environment: dict[str, str], submit: Callable[..., str], server: Valkey
) -> None:
    job_id, waiting = submit("late@5", steps=10), submit()
    with worker(environment, FAKE) as process:
        reaches_step(services, job_id, 5)
        child = child_of(process.pid)
        server.kill()
        time.sleep(1)
        server.start()
        Path(environment["FAKE_GATE"]).touch()
        assert completed(services, job_id).attempt == 1
        completed(services, waiting)
        assert child_of(process.pid) == child, "the models stayed loaded"


@pytest.mark.usefixtures("maintenance")
@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_video_that_is_finished_while_redis_is_unreachable_is_kept(
    services: Services,
    environment: dict[str, str],
    submit: Callable[..., str],
    server: Valkey,
    outage: str,
    tmp_path: Path,
) -> None:
    """The outage is longer than the lease; nothing is worked on twice."""
    job_id = submit("late@5", steps=10)
    with worker(environment, FAKE):
        reaches_step(services, job_id, 5)
        server.kill() if outage == "killed" else server.freeze()
        Path(environment["FAKE_GATE"]).touch()
        wait_for(lambda: any((tmp_path / "data").rglob("video.mp4")) or None)
        time.sleep(LEASE_S + 1)
        server.start() if outage == "killed" else server.thaw()
        assert completed(services, job_id).attempt == 1


@pytest.mark.usefixtures("maintenance")
def test_waiting_job_whose_queue_entry_is_gone_is_done(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit()
    services.redis.delete(queue.key, f"rq:job:{job_id}")
    with worker(environment, FAKE):
        completed(services, job_id)


@pytest.mark.usefixtures("maintenance")
@pytest.mark.parametrize(("field", "value"), [("data", b"garbage"), ("created_at", b"garbage")])
def test_queue_entry_that_cannot_be_read_stops_neither_its_job_nor_the_worker(
    services: Services, environment: dict[str, str], submit: Callable[..., str], field: str, value: bytes
) -> None:
    poisoned, next_one = submit(), submit()
    services.redis.hset(f"rq:job:{poisoned}", field, value)
    with worker(environment, FAKE) as process:
        completed(services, next_one)
        completed(services, poisoned)
        assert process.poll() is None


def test_record_that_cannot_be_read_stops_no_worker(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    poisoned, next_one = submit(), submit()
    services.redis.hset(job_key(poisoned), "generation", "garbage")
    with worker(environment, FAKE):
        completed(services, next_one)
    assert services.redis.hget(job_key(poisoned), "state") == b'"failed"'


def test_nothing_of_an_ended_job_stays_in_rqs_registries(
    services: Services, environment: dict[str, str], submit: Callable[..., str], queue: Queue
) -> None:
    job_id = submit()

    def left() -> set[bytes]:
        return {key for key in services.redis.keys("*") if job_id.encode() in key and not key.startswith(b"ivm:")}

    with worker(environment, FAKE):
        completed(services, job_id)
        wait_for(lambda: services.redis.ttl(f"rq:job:{job_id}") > 0)
        wait_for(lambda: left() == {f"rq:job:{job_id}".encode()})
        wait_for(lambda: queue.started_job_registry.count == 0)
        assert queue.count == queue.finished_job_registry.count == queue.failed_job_registry.count == 0


# -- one job is decoded and stored while the networks have the next


@pytest.fixture
def two(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> Callable[[str, str], tuple[str, str]]:
    """two(...) -> ids of two jobs, when the first has all its steps and is held there, and the second has begun."""

    def begin(after_steps: str, then: str) -> tuple[str, str]:
        first, second = submit(f"late@decode {after_steps}@decode"), submit(then, steps=200)
        reaches_step(services, second, 5)
        assert now(services, first).phase is Phase.DECODING
        return first, second

    return begin


def test_next_job_is_sampled_while_the_last_one_is_stored(
    services: Services, environment: dict[str, str], two: Callable[[str, str], tuple[str, str]]
) -> None:
    with worker(environment, FAKE):
        first, second = two("", "")
        Path(environment["FAKE_GATE"]).touch()
        done = [completed(services, job_id) for job_id in (first, second)]
        wait_for(lambda: Queue("gpu-demo", connection=services.redis).started_job_registry.count == 0)
        for job in done:  # RQ's entries go, later
            wait_for(lambda job=job: services.redis.ttl(f"rq:job:{job.id}") > 0)
    assert [job.attempt for job in done] == [1, 1]
    assert done[0].completed_at <= done[1].completed_at


def test_third_job_waits_until_the_first_is_stored(
    services: Services, environment: dict[str, str], submit: Callable[..., str]
) -> None:
    first, second, third = submit("late@decode"), submit(), submit()
    with worker({**environment, "IVMIX_STALL_TIMEOUT_S": "60"}, FAKE):
        reaches_step(services, second, 20)
        time.sleep(LEASE_S + 1)  # for longer than a lease
        assert [now(services, job_id).state for job_id in (first, second, third)] == ["running", "running", "queued"]
        Path(environment["FAKE_GATE"]).touch()
        done = [completed(services, job_id) for job_id in (first, second, third)]
    assert [job.attempt for job in done] == [1, 1, 1]
    assert [job.completed_at for job in done] == sorted(job.completed_at for job in done)


@pytest.mark.parametrize("fault", ["die", "fail", "hang"])
def test_child_that_breaks_while_it_stores_costs_both_jobs_an_attempt(
    services: Services,
    environment: dict[str, str],
    submit: Callable[..., str],
    two: Callable[[str, str], tuple[str, str]],
    fault: str,
) -> None:
    with worker(environment, FAKE):
        first, second = two("", "")
        third = submit(f"{fault}@decode")
        Path(environment["FAKE_GATE"]).touch()
        completed(services, first)
        completed(services, second)
        failed = reaches(services, third, JobState.FAILED)
        completed(services, submit())
    assert failed.error is not None
    assert failed.attempt == 3


def test_killed_child_has_two_jobs_and_both_are_done(
    services: Services, environment: dict[str, str], two: Callable[[str, str], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two("", "")
        os.kill(child_of(process.pid), signal.SIGKILL)
        Path(environment["FAKE_GATE"]).touch()
        assert [completed(services, job_id).attempt for job_id in (first, second)] == [2, 2]


@pytest.mark.usefixtures("maintenance")
def test_killed_parent_has_two_jobs_and_both_are_requeued(
    services: Services, environment: dict[str, str], two: Callable[[str, str], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two("", "")
        process.kill()
        Path(environment["FAKE_GATE"]).touch()
        with worker(environment, FAKE):
            assert [completed(services, job_id).attempt for job_id in (first, second)] == [2, 2]


def test_stopped_worker_stores_what_is_finished_and_hands_the_other_back(
    services: Services, environment: dict[str, str], two: Callable[[str, str], tuple[str, str]]
) -> None:
    with worker(environment, FAKE) as process:
        first, second = two("", "")
        process.terminate()
        wait_for(lambda: now(services, second).state is JobState.QUEUED)
        Path(environment["FAKE_GATE"]).touch()
        assert process.wait(30) == 0
    assert completed(services, first).attempt == 1
    assert (now(services, second).state, now(services, second).attempt) == (JobState.QUEUED, 0)
    assert generate_queue(services.redis, "demo").job_ids == [second]


def test_stopped_worker_does_not_wait_for_ever_for_a_clip_to_be_stored(
    services: Services, environment: dict[str, str], two: Callable[[str, str], tuple[str, str]]
) -> None:
    with worker({**environment, "IVMIX_STOP_GRACE_S": "1", "IVMIX_STALL_TIMEOUT_S": "60"}, FAKE) as process:
        first, second = two("", "")
        process.terminate()
        assert process.wait(30) == 0
    assert [(now(services, job_id).state, now(services, job_id).attempt) for job_id in (first, second)] == [
        (JobState.QUEUED, 0),
        (JobState.QUEUED, 0),
    ]
