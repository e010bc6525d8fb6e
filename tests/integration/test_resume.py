"""A video whose worker was killed or stopped at any step is byte for byte the undisturbed one, with LoRAs too.

One trial runs always; `RESUME_SEED=1 pytest -m slow tests/integration/test_resume.py` runs twenty more.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from service.jobs.model import Generation, Job, JobState
from service.jobs.rq_queues import generate_queue
from service.settings import MODELS_FILE, Settings
from service.wiring import Services, open_services
from tests.factories import make_generation
from tests.lora_files import Numbers, kohya
from tests.processes import child_of, started, wait_for, worker

STEPS = 6
INK_AND_ZOOM: list[dict[str, Any]] = [
    {"name": "ink", "scale": 0.5, "networks": ["image", "video"]},
    {"name": "zoom", "scale": 1.0, "networks": ["video"]},
]
WAIT_S = 240.0


@pytest.fixture
def services(valkey: str, tmp_path: Path) -> Iterator[Services]:
    opened = open_services(Settings(redis_url=valkey, data_dir=tmp_path, lease_s=4, beat_s=0.4))
    yield opened
    opened.close()


@pytest.fixture
def models_file(tmp_path: Path) -> Path:
    """The demo models with LoRAs to choose: one of both networks, and one of the motion modules."""
    weights = MODELS_FILE.parents[2] / "demo" / "weights"
    unet, motion = (
        load_file(weights / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "motion_adapter")
    )
    tables = [f'[sources.own]\nfolder = "{tmp_path}"']
    for name, stored, on in (("ink", unet, ["image", "video"]), ("zoom", motion, ["video"])):
        layers = {key.removesuffix(".weight"): x for key, x in stored.items() if key.endswith("to_q.weight")}
        save_file(kohya("lora_unet", layers, Numbers()), tmp_path / f"{name}.safetensors")
        tables.append(f'[[models.demo.selectable_loras]]\nname = "{name}"\nfile = "own/{name}.safetensors"\non = {on}')
    file = tmp_path / "models.toml"
    text = MODELS_FILE.read_text().replace("../../demo/weights", str(weights))
    file.write_text("\n".join([text, *tables]))
    return file


@pytest.fixture
def environment(services: Services, models_file: Path) -> dict[str, str]:
    return {
        "IVMIX_MODELS_FILE": str(models_file),
        "IVMIX_REDIS_URL": str(services.settings.redis_url),
        "IVMIX_DATA_DIR": str(services.settings.data_dir),
        "IVMIX_LEASE_S": "4",
        "IVMIX_BEAT_S": "0.4",
        "IVMIX_LOOK_S": "0.1",
        "IVMIX_CHECKPOINT_S": "0.01",
        "OMP_NUM_THREADS": "1",
    }


def submit(services: Services, generation: Generation) -> str:
    return services.store.create(Job.new(generation), generate_queue(services.redis, "demo")).id


def step_of(services: Services, job_id: str) -> int:
    job = services.store.get(job_id)
    assert job is not None
    return job.step


def attempts(services: Services, job_id: str) -> int:
    job = services.store.get(job_id)
    assert job is not None
    return job.attempt


def digest(services: Services, job_id: str) -> str:
    def there() -> str | None:
        job = services.store.get(job_id)
        assert job is not None
        assert job.error is None
        return job.output.sha256 if job.state is JobState.COMPLETED and job.output else None

    return wait_for(there, timeout_s=WAIT_S, hint=f"for {job_id}")


def trial(services: Services, environment: dict[str, str], chance: random.Random, fault: str) -> None:
    """Kill or stop a worker at a random step, let another one complete the job, and compare with an undisturbed run.

    Before the undisturbed run, jobs with other LoRAs and with none change the networks' weights.
    """
    generation = make_generation(num_inference_steps=STEPS, seed=chance.randrange(2**32), loras=INK_AND_ZOOM)
    at = chance.randrange(1, STEPS // 2)
    disturbed = submit(services, generation)
    short = {"num_inference_steps": 1, "sampler": {"name": "ddim"}}
    others = [submit(services, make_generation(**short, loras=loras)) for loras in ([], INK_AND_ZOOM[:1], [])]
    undisturbed = submit(services, generation)
    with worker(environment) as first:
        wait_for(lambda: step_of(services, disturbed) >= at or None, timeout_s=WAIT_S)
        match fault:
            case "kill the child":
                os.kill(child_of(first.pid), signal.SIGKILL)
                assert_undisturbed(services, disturbed, others, undisturbed)
                return
            case "kill the parent":
                first.kill()
            case "kill the child, then stop":
                os.kill(child_of(first.pid), signal.SIGKILL)
                wait_for(lambda: attempts(services, disturbed) == 2 or None, timeout_s=WAIT_S)
                at = step_of(services, disturbed)
                wait_for(lambda: step_of(services, disturbed) > at or None, timeout_s=WAIT_S)
                first.terminate()
                assert first.wait(60) == 0
            case _:
                first.terminate()
                assert first.wait(60) == 0
    with started(environment, "service.maintenance"), worker(environment):
        assert_undisturbed(services, disturbed, others, undisturbed)


def assert_undisturbed(services: Services, disturbed: str, others: list[str], undisturbed: str) -> None:
    assert digest(services, disturbed) == digest(services, undisturbed)
    none, ink, none_again = (digest(services, job) for job in others)
    assert none == none_again != ink


@pytest.mark.timeout(900)
def test_resumed_video_is_the_undisturbed_one(
    services: Services, environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    trial(services, environment, random.Random(0), "kill the child")
    said = capfd.readouterr().err
    assert said.count("resumed after step") == 1
    # the second child: one load for five jobs, and a switch of its LoRAs before each of them
    last = said[said.rindex("MB shared by both UNets") :]
    switches = re.findall(r"LoRAs switched from (.+) to (.+) in \d+\.\d+ s", last)
    both, ink = "ink 0.5 (image+video), zoom 1 (video)", "ink 0.5 (image+video)"
    assert switches == [("none", both), (both, "none"), ("none", ink), (ink, "none"), ("none", both)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", range(20))
def test_resumed_video_is_the_undisturbed_one_wherever_it_was_disturbed(
    services: Services, environment: dict[str, str], number: int
) -> None:
    chance = random.Random(os.environ.get("RESUME_SEED", "1") + f".{number}")
    faults = ["kill the child", "kill the parent", "stop", "kill the child, then stop"]
    trial(services, environment, chance, faults[number % 4])
