"""A real worker, whose storage is a real S3 server that goes away just when the clip is done."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs.keys import job_key
from service.jobs.model import Job, JobState, Phase
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.storage.manifest import Manifest
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.faulty_proxy import FaultyProxy
from tests.integration.test_worker import reaches
from tests.processes import clean_environment, wait_for, worker

ALWAYS = 100_000
FAKE = "tests.fake_worker"  # what it does with a finished clip is the real worker's


@pytest.fixture
def proxy(swift: Settings) -> Iterator[FaultyProxy]:
    assert swift.s3_endpoint_url is not None
    with FaultyProxy(swift.s3_endpoint_url) as running:
        yield running


@pytest.fixture
def services(swift: Settings) -> Iterator[Services]:
    opened = open_services(swift)
    yield opened
    opened.close()


@pytest.fixture
def environment(services: Services, proxy: FaultyProxy) -> dict[str, str]:
    settings = services.settings
    assert settings.redis_url is not None
    assert settings.s3_secret_access_key is not None
    return {
        "IVMIX_REDIS_URL": settings.redis_url,
        "IVMIX_DATA_DIR": str(settings.data_dir),
        "IVMIX_STORAGE": "s3",
        "IVMIX_S3_BUCKET": settings.s3_bucket or "",
        "IVMIX_S3_ENDPOINT_URL": proxy.url,
        "IVMIX_S3_ACCESS_KEY_ID": settings.s3_access_key_id or "",
        "IVMIX_S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
    }


def submit(services: Services) -> str:
    generation = make_generation(num_inference_steps=3, sampler={"name": "ddim"})
    return services.store.create(Job.new(generation), generate_queue(services.redis, "demo")).id


def has_checked(proxy: FaultyProxy) -> None:
    """The storage was there when the worker started."""
    wait_for(lambda: any(line.startswith("DELETE") for line in proxy.seen), timeout_s=120)


def is_uploading(services: Services, job_id: str) -> bool:
    job = services.store.get(job_id)
    return job is not None and job.phase is Phase.UPLOADING


def waits_for_the_storage(services: Services, proxy: FaultyProxy, job_id: str) -> None:
    wait_for(lambda: is_uploading(services, job_id), timeout_s=120)
    tries = len(proxy.seen)
    wait_for(lambda: len(proxy.seen) >= tries + 4, timeout_s=60)


def is_stored(services: Services, job: Job) -> bool:
    assert job.output is not None
    return services.storage.matches(job.output.key, size_bytes=job.output.size_bytes, sha256=job.output.sha256)


def on_scratch(services: Services, job_id: str) -> list[Path]:
    return list((services.settings.scratch_folder / job_id).glob("*/manifest.json"))


@pytest.mark.slow
def test_a_short_outage_is_waited_out_a_long_one_fails_the_job_and_the_worker_goes_on(
    services: Services, proxy: FaultyProxy, environment: dict[str, str]
) -> None:
    with worker({**environment, "IVMIX_STORAGE_RETRY_S": "8"}):
        has_checked(proxy)
        proxy.faults.extend(["503"] * 6)
        short = reaches(services, submit(services), JobState.COMPLETED)
        assert (short.attempt, len(proxy.faults)) == (1, 0)
        assert is_stored(services, short)

        proxy.faults.extend(["503"] * ALWAYS)
        long = reaches(services, submit(services), JobState.FAILED)
        assert long.error is not None
        assert (long.attempt, long.error.code) == (1, "storage_unavailable")

        proxy.faults.clear()
        assert is_stored(services, reaches(services, submit(services), JobState.COMPLETED))
        wait_for(lambda: not any(services.settings.scratch_folder.iterdir()))


def test_a_finished_clip_is_not_drawn_again(
    services: Services, proxy: FaultyProxy, environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its worker was stopped while the storage was unreachable; its commit was lost."""
    job_id = submit(services)
    with worker(environment, FAKE) as process:
        proxy.faults.extend(["503"] * ALWAYS)
        waits_for_the_storage(services, proxy, job_id)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    reaches(services, job_id, JobState.QUEUED)
    (left,) = on_scratch(services, job_id)
    drawn = Manifest.model_validate_json(left.read_text())
    proxy.faults.clear()
    with worker(environment, FAKE):
        handed_over = reaches(services, job_id, JobState.COMPLETED)
        assert is_stored(services, handed_over)
        wait_for(lambda: not on_scratch(services, job_id), timeout_s=60)  # now the worker is done with it
        proxy.seen.clear()
        services.redis.delete(job_key(job_id))
        services.store.create(
            handed_over.model_copy(update={"state": JobState.QUEUED, "output": None, "timings": {}}),
            generate_queue(services.redis, "demo"),
        )
        found = reaches(services, job_id, JobState.COMPLETED)
    assert capfd.readouterr().err.count("from step") == 1, "the engine says when it begins"
    for job in (handed_over, found):
        assert job.output == drawn.output
        assert job.timings[Phase.SAMPLING] == drawn.job.timings[Phase.SAMPLING]
    assert not any(line.startswith("PUT") for line in proxy.seen)


@pytest.mark.parametrize("program", ["worker", "service.api"])
def test_a_wrong_secret_ends_the_process_at_its_start(environment: dict[str, str], program: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", program],
        env={**clean_environment(), **environment, "IVMIX_S3_SECRET_ACCESS_KEY": "wrong"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert "IVMIX_S3_SECRET_ACCESS_KEY" in run.stderr
    assert "Traceback" not in run.stderr
