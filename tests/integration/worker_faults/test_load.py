"""The promises while a worker cannot load its models: it stays, says why, and works as soon as they load."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.keys import loads_key
from service.jobs.model import JobState
from service.settings import MODELS_FILE
from service.wiring import Services
from tests.integration.worker_faults.conftest import FAKE
from tests.job_waits import completed, reaches
from tests.processes import child_of, wait_for, worker


@pytest.fixture
def broken(environment: dict[str, str], tmp_path: Path) -> Path:
    """The file that makes loading fail with its content. Its registry may be touched."""
    registry = tmp_path / "models.toml"
    weights = str(MODELS_FILE.parents[2] / "demo" / "weights")
    registry.write_text(MODELS_FILE.read_text().replace("../../demo/weights", weights))
    file = tmp_path / "broken"
    environment |= {"FAKE_LOAD": str(file), "IVMIX_MODELS_FILE": str(registry), "IVMIX_PULSE_FILE": f"{tmp_path}/pulse"}
    return file


def failure(services: Services) -> str | None:
    return services.loads.failures(["demo"]).get("demo")


@pytest.mark.slow
@pytest.mark.usefixtures("maintenance")
def test_an_idle_worker_that_loses_its_models_says_so_and_jobs_fail_until_it_has_them_again(
    services: Services, environment: dict[str, str], submit: Callable[..., str], broken: Path, tmp_path: Path
) -> None:
    pulse = tmp_path / "pulse"
    with worker(environment, FAKE) as process:
        completed(services, submit())
        assert pulse.read_text() == "ready\n"
        broken.write_text(f"{tmp_path}/unet/x.safetensors is cut off")
        os.kill(child_of(process.pid), signal.SIGKILL)
        assert wait_for(lambda: failure(services), timeout_s=60) == "unet/x.safetensors is cut off"
        assert pulse.read_text() == "not ready\n"
        assert time.time() - pulse.stat().st_mtime < 30, "the worker is alive"
        failed = reaches(services, submit(), JobState.FAILED, timeout_s=60)
        assert failed.error is not None
        assert (failed.error.code, failed.attempt) == ("model_unavailable", 0)
        assert failed.error.message.endswith(": unet/x.safetensors is cut off")
        broken.unlink()
        Path(environment["IVMIX_MODELS_FILE"]).touch()
        wait_for(lambda: failure(services) is None)
        completed(services, submit())
        assert pulse.read_text() == "ready\n"
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.usefixtures("maintenance")
def test_a_broken_worker_takes_no_job_from_a_healthy_one(
    services: Services, environment: dict[str, str], submit: Callable[..., str], broken: Path, tmp_path: Path
) -> None:
    broken.write_text("broken")
    with worker(environment, FAKE) as other:
        wait_for(lambda: failure(services), timeout_s=60)
        healthy = environment | {"FAKE_LOAD": str(tmp_path / "not there"), "IVMIX_PULSE_FILE": f"{tmp_path}/second"}
        with worker(healthy, FAKE):
            job_id = submit(steps=100)
            assert completed(services, job_id).attempt == 1
            assert failure(services) is None
        other.terminate()
        assert other.wait(30) == 0
    assert not services.redis.exists(loads_key("demo")), "a worker that ends says nothing any more"
