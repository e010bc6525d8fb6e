from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampler import Call, FusedMove, Move, NoiseSchedule, Plan, Renoise, Restart, ddim_plan, free_init_plan, mixed_plan
from service.catalog.optimise import Configuration, Optimise
from service.jobs.model import Generation
from tests.factories import make_generation
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.fingerprint import run_fingerprint, run_fingerprints_0_1, weights_digest

SHAPE = (1, 4, 2, 3, 3)
FEW = 2  # frames: most costs grow with their number
CPU = torch.device("cpu")
VERSION_0_1 = Path(__file__).parents[2] / "data" / "checkpoint_0_1.safetensors"
WEIGHTS_0_1 = "c81c2c7b55034df4321509bd34a0502445386f176d4187f111ccd1e2d008b176"  # weights_digest of its demo


def make_checkpoint(**over: object) -> Checkpoint:
    given = {
        "fingerprint": "f",
        "step": 3,
        "latents": torch.randn(SHAPE),
        "memory": {"x0": torch.randn(SHAPE)},
        "rng": torch.Generator().get_state(),
    }
    return Checkpoint(**(given | over))  # type: ignore[arg-type]


def read(path: Path, name: str = "f") -> Checkpoint | None:
    return Checkpoint.read(path, {name}, lambda _step: SHAPE, CPU)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.write(tmp_path / "c")
    back = read(tmp_path / "c")
    assert back is not None
    assert (back.fingerprint, back.step, set(back.memory)) == ("f", 3, {"x0"})
    assert torch.equal(back.latents, checkpoint.latents)
    assert torch.equal(back.memory["x0"], checkpoint.memory["x0"])
    assert torch.equal(back.rng, checkpoint.rng)


def test_tensors_that_share_their_memory_can_be_written(tmp_path: Path) -> None:
    x = torch.randn(SHAPE)
    make_checkpoint(latents=x, memory={"initial": x}).write(tmp_path / "c")
    assert read(tmp_path / "c") is not None


@pytest.mark.parametrize("at", [10, 100, 300, -1], ids=["header", "metadata", "tensors", "end"])
def test_a_changed_byte_anywhere_makes_it_no_checkpoint(tmp_path: Path, at: int) -> None:
    file = tmp_path / "c"
    make_checkpoint().write(file)
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert read(file) is None


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_that_was_cut_is_no_checkpoint(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "c"
    make_checkpoint().write(file)
    file.write_bytes(file.read_bytes()[:kept])
    assert read(file) is None


def test_state_of_another_run_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint().write(tmp_path / "c")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "c", "other") is None
    assert "another run" in caplog.text


def test_state_without_its_checksum_is_not_used(tmp_path: Path) -> None:
    make_checkpoint().write(tmp_path / "c")
    save_file(load_file(tmp_path / "c"), tmp_path / "c", {"fingerprint": "f", "step": "3"})
    assert read(tmp_path / "c") is None


@pytest.mark.parametrize("latents", [torch.full(SHAPE, torch.nan), torch.zeros(1, 4, 1, 3, 3)], ids=["nan", "shape"])
def test_latents_that_no_run_could_go_on_from_are_not_used(tmp_path: Path, latents: Tensor) -> None:
    make_checkpoint(latents=latents).write(tmp_path / "c")
    assert read(tmp_path / "c") is None


# -- with the demo models


def states(engine: Engine, generation: Generation, folder: Path) -> tuple[Tensor, list[Path]]:
    """The frames of an undisturbed run, and a file of the state after each of its steps."""
    files: list[Path] = []

    def keep(checkpoint: Checkpoint) -> None:
        files.append(folder / str(checkpoint.step))
        checkpoint.write(files[-1])

    return engine.generate(generation, on_step=keep).frames, files


def test_run_resumed_after_any_step_gives_the_same_frames_and_does_only_the_rest(
    engine: Engine, tmp_path: Path
) -> None:
    generation = make_generation(num_frames=FEW, num_inference_steps=4)
    frames, files = states(engine, generation, tmp_path)
    assert len(files) == 4
    for done, file in enumerate(files, 1):
        steps: list[int] = []
        clip = engine.generate(generation, on_step=lambda c, steps=steps: steps.append(c.step), resume=file)
        assert torch.equal(clip.frames, frames)
        assert steps == list(range(done + 1, 5))


def test_image_network_alone_is_resumed_after_any_step_too(engine: Engine, tmp_path: Path) -> None:
    generation = make_generation(num_frames=FEW, num_inference_steps=3, sampler={"name": "ddim", "network": "image"})
    frames, files = states(engine, generation, tmp_path)
    for file in files[:-1]:
        assert torch.equal(engine.generate(generation, resume=file).frames, frames)
    video_alone = make_generation(num_frames=FEW, num_inference_steps=3, sampler={"name": "ddim"})
    resumed = engine.generate(video_alone, resume=files[0]).frames
    assert torch.equal(resumed, engine.generate(video_alone).frames), "the state of another network is ignored"


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "evs", "enlarge": 1.5, "image_interval": (0.2, 0.7)},
        {"name": "ddim", "guidance_rule": "apg", "apg_norm_threshold": 2},
    ],
    ids=str,
)
def test_latents_of_another_size_and_momentum_are_resumed(
    engine: Engine, tmp_path: Path, sampler: dict[str, object]
) -> None:
    generation = make_generation(num_inference_steps=5, sampler=sampler)
    frames, files = states(engine, generation, tmp_path)
    for file in files[:-1]:
        steps: list[int] = []
        clip = engine.generate(generation, on_step=lambda c, steps=steps: steps.append(c.step), resume=file)
        assert torch.equal(clip.frames, frames)
        assert steps == list(range(int(file.name) + 1, 6))


def freeinit(engine: Engine) -> Plan:
    schedule = engine.models.video_schedule
    return free_init_plan(ddim_plan(schedule, 2, guidance=3), schedule, 3)


def gaussian(engine: Engine) -> Plan:
    schedules = {"schedule": engine.models.video_schedule, "image_schedule": engine.models.image_schedule}
    return mixed_plan(**schedules, steps=4, combination="R-I", order="goback_first", guidance=3)


@pytest.mark.parametrize("make_plan", [freeinit, gaussian])
def test_noise_and_memory_of_a_run_are_resumed_too(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_plan: Callable[[Engine], Plan]
) -> None:
    """Plans that draw noise on their way, and that remember the noise they began with."""
    plan = make_plan(engine)
    monkeypatch.setattr(engine, "plan", lambda _: plan)
    generation = make_generation(num_frames=FEW, num_inference_steps=2)
    frames, files = states(engine, generation, tmp_path)
    for file in files[:-1]:
        assert torch.equal(engine.generate(generation, resume=file).frames, frames)


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "a blue circle moving left on a teal background"}])
def test_state_of_another_request_is_ignored(engine: Engine, tmp_path: Path, change: dict[str, object]) -> None:
    _, files = states(engine, make_generation(num_frames=FEW, num_inference_steps=2), tmp_path)
    other = make_generation(num_frames=FEW, num_inference_steps=2, **change)
    assert torch.equal(engine.generate(other, resume=files[0]).frames, engine.generate(other).frames)


def test_state_of_another_configuration_is_not_resumed(engine: Engine, tmp_path: Path) -> None:
    """It would round otherwise from there on, and the clip would be none that one run gives."""
    generation = make_generation(num_frames=FEW, num_inference_steps=2)
    _, files = states(engine, generation, tmp_path)
    steps: list[int] = []
    engine.use(Configuration(source="tuned", optimise=Optimise(guidance_halves="apart")))
    engine.generate(generation, on_step=lambda c: steps.append(c.step), resume=files[0])
    assert steps == [1, 2]
    steps.clear()
    engine.use(Configuration(source="tuned", optimise=Optimise()))  # tuned or not: what counts is how it runs
    engine.generate(generation, on_step=lambda c: steps.append(c.step), resume=files[0])
    assert steps == [2]


def test_fingerprint_changes_with_any_weight_plan_request_and_optimisation(engine: Engine) -> None:
    generation = make_generation(num_inference_steps=2)
    plan, digest, optimise = engine.plan(generation), weights_digest(engine.models), Optimise()
    names = [run_fingerprint(digest, optimise, generation, plan)]
    others = {"cache_text_kv": False, "guidance_halves": "apart", "attention_backend": "_native_math"}
    switched = [Optimise.model_validate({name: value}) for name, value in others.items()]
    names += [run_fingerprint(digest, other, generation, plan) for other in switched]
    names.append(run_fingerprint(digest, optimise, make_generation(num_inference_steps=2, seed=8), plan))
    names.append(run_fingerprint(digest, optimise, generation, engine.plan(make_generation(num_inference_steps=3))))
    models = engine.models
    for network in (models.video_unet, models.image_unet, models.vae, models.video_text_encoder.encoder):
        weight = next(p for p in reversed(list(network.parameters())) if p.ndim == 1)
        before = weight[-1].item()
        weight[-1] += 1e-3
        names.append(weights_digest(engine.models))
        weight[-1] = before
    assert len(set(names)) == len(names)
    assert weights_digest(engine.models) == digest


# -- written by version 0.1


def test_checkpoint_of_version_0_1_is_resumed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`checkpoint_0_1.safetensors` is the state after step 2, written by version 0.1 with torch 2.13.0+cpu.

    The demo's weights have been trained further since. Which weights a checkpoint is of, is tested above.
    """
    engine._weights = WEIGHTS_0_1
    generation = make_generation(num_frames=2, num_inference_steps=4)
    steps: list[int] = []
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    engine.generate(generation, on_step=lambda c: steps.append(c.step), resume=VERSION_0_1)
    assert steps == [3, 4]
    other = make_generation(num_frames=2, num_inference_steps=4, seed=8)
    steps.clear()
    engine.generate(other, on_step=lambda c: steps.append(c.step), resume=VERSION_0_1)
    assert steps == [1, 2, 3, 4]


def test_fingerprint_of_version_0_1_is_that_of_its_switches() -> None:
    """A worker of version 0.1 ran with halves_once on or off; a switch that differs otherwise is another run."""
    run = (make_generation(num_inference_steps=2), ddim_plan(NoiseSchedule.linear(1e-4, 0.02), 2, guidance=3))
    default, other = (
        run_fingerprints_0_1("weights", optimise, *run) for optimise in (Optimise(), Optimise(compile=True))
    )
    assert len(default | other) == 4


def test_moves_are_written_as_in_version_0_1() -> None:
    """A plan's repr is part of the fingerprint."""
    call = "Call(model='image', timestep=1, alpha=0.5, guidance=2.0, uncond=1.0)"
    expected = {
        Move("image", 1, 0.1, 0.2, 3.0): "Move(model='image', timestep=1, src=0.1, dst=0.2, guidance=3.0)",
        FusedMove((Call("image", 1, 0.5, 2.0),), 0.1, 0.2): f"FusedMove(parts=({call},), src=0.1, dst=0.2)",
        Renoise(0.5, 0.1): "Renoise(src=0.5, dst=0.1)",
        Restart(0.1, "ideal", 4, 0.2, 0.3): (
            "Restart(dst=0.1, method='ideal', order=4, spatial_cutoff=0.2, temporal_cutoff=0.3)"
        ),
    }
    for move, text in expected.items():
        assert repr(Plan(((move,),))) == f"Plan(steps=(({text},),))"
