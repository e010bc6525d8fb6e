"""Family wan with tiny weights: latents and frames equal to those of diffusers' WanPipeline."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from sampler import ddim_plan, sample, zigzag_plan
from service.errors import ConfigurationError
from service.jobs.model import Phase
from tests.factories import make_job
from tests.tiny_wan import (
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    STEPS,
    WIDTH,
    assert_close,
    generation,
    noise,
    pipeline,
    save_transformer,
    save_wan,
    theirs,
    use_euler,
    wan_entry,
)
from tests.unit.worker.test_child_main import outcome, running
from worker.child.engine import Engine
from worker.messages import Done, Progress, Stop, Stopped
from worker.models import TransformerModels, load
from worker.verify import verify

BOUNDARY = 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    use_euler(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(wan_entry(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return pipeline(folder)


@pytest.fixture(scope="module")
def models(engine: Engine) -> TransformerModels:
    assert isinstance(engine.models, TransformerModels)
    return engine.models


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_and_frames_are_those_of_diffusers(engine: Engine, pipe: Any, guidance: float) -> None:
    made = engine.sample(generation(engine.models.entry, guidance_scale=guidance))
    assert_close(made.latents, theirs(pipe, guidance))
    frames = engine.decode(made).frames
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    expected = torch.from_numpy(theirs(pipe, guidance, output="np")[0]).mul(255)
    assert (frames - expected).abs().max() <= 0.51


def test_public_loader_runs_plans_of_the_sampler_directly(folder: Path, pipe: Any) -> None:
    models: Any = load(wan_entry(folder), "cpu")
    plan = ddim_plan(models.video_schedule, STEPS, guidance=5.0)
    _, video = models.denoisers(PROMPT, NEGATIVE)
    *_, last = sample(noise(), plan, video=video)
    assert_close(last.latents, theirs(pipe, 5.0))


def test_batch_of_two_is_two_clips(models: TransformerModels) -> None:
    plan = ddim_plan(models.video_schedule, STEPS, guidance=5.0)
    prompts, none = [PROMPT, "a green square"], [NEGATIVE, ""]

    def run(texts: slice, latents: Tensor) -> Tensor:
        _, video = models.denoisers(models.encode(prompts[texts]), models.encode(none[texts]))
        return list(sample(latents, plan, video=video))[-1].latents

    latents = torch.cat([noise(1), noise(2)])
    together = run(slice(0, 2), latents)
    for clip in (0, 1):
        one = slice(clip, clip + 1)
        assert_close(together[one], run(one, latents[one]))


def test_halves_apart_and_low_memory_mode_are_the_same_clip(engine: Engine, folder: Path) -> None:
    entry = wan_entry(folder, "memory = { halves_apart = true, tiling = true }")
    whole, apart = engine.sample(generation(entry)), Engine(entry, torch.device("cpu"))
    calls: list[int] = []
    apart.models.transformers[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))  # type: ignore[union-attr]
    assert_close(apart.sample(generation(entry)).latents, whole.latents)
    assert calls == [1] * 2 * STEPS
    low = engine._sample(
        generation(entry), None, lambda *_: None, lambda _: None, lambda _: None, None, {}, low_memory=True
    )
    assert_close(low.latents, whole.latents)
    assert (engine.decode(low).frames.int() - engine.decode(whole).frames).abs().max() <= 1


def test_clip_in_tiles_is_that_of_diffusers(models: TransformerModels, folder: Path) -> None:
    latents = torch.randn(1, 16, 1, 34, 2, generator=torch.Generator().manual_seed(1))
    vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae")
    whole, tiled = models.decode(latents), models.decode(latents, frames_per_call=1)
    for found in (whole, tiled):
        with torch.no_grad():
            expected = vae.decode(models.autoencoder.unscaled(latents)).sample
        assert (found - expected[0].permute(1, 2, 3, 0).add(1).mul(127.5)).abs().max() <= 0.51
        vae.enable_tiling()
    assert not torch.equal(whole, tiled)
    assert torch.equal(models.decode(latents), whole), "tiles are for one call"


def test_job_is_stopped_in_one_worker_and_completed_byte_identically_in_the_next(
    engine: Engine, tmp_path: Path
) -> None:
    job = make_job(generation=generation(engine.models.entry, num_inference_steps=6, sampler={"solver": "dpmpp-2m"}))
    with running(engine, tmp_path / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    assert isinstance(undisturbed, Done), undisturbed
    with running(engine, tmp_path / "data") as child:
        with child.job(job) as pipe, at_call(engine, 4, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, reports = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    steps = [report.step for report in reports if isinstance(report, Progress) and report.phase is Phase.SAMPLING]
    assert 1 < min(steps) < 5


class at_call:  # noqa: N801  # reads as a verb where it is used
    """`do` during this call of the transformer."""

    def __init__(self, engine: Engine, number: int, do: Callable[[], None]) -> None:
        self._network, self._number, self._do, self._calls = engine.models.transformers[0], number, do, 0  # type: ignore[union-attr]

    def __enter__(self) -> None:
        self._handle = self._network.register_forward_pre_hook(self._hook)

    def _hook(self, *_: object) -> None:
        self._calls += 1
        if self._calls == self._number:
            self._do()

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# -- two experts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("experts") / "wan"
    shutil.copytree(folder, copied)
    torch.manual_seed(9)
    save_transformer(copied / "transformer_2")
    return copied


def test_two_experts_are_those_of_diffusers(experts: Path, pipe: Any) -> None:
    engine = Engine(wan_entry(experts, f"boundary_ratio = {BOUNDARY}"), torch.device("cpu"))
    second = WanTransformer3DModel.from_pretrained(experts / "transformer_2")
    expected = theirs(pipeline(experts, transformer_2=second, boundary_ratio=BOUNDARY), 5.0)
    assert_close(engine.sample(generation(engine.models.entry)).latents, expected)
    assert (theirs(pipe, 5.0) - expected).abs().max() > 0.01, "the second expert matters"


def test_the_level_that_the_latents_are_at_chooses_the_expert_of_every_move(experts: Path) -> None:
    models: Any = load(wan_entry(experts, f"boundary_ratio = {BOUNDARY}"), "cpu")
    calls: list[tuple[int, float]] = []
    for number, network in enumerate(models.transformers):
        network.register_forward_pre_hook(lambda _, args, number=number: calls.append((number, float(args[1][0]))))
    plan = zigzag_plan(models.video_schedule, STEPS, guidance=5.0, goback_guidance=1.0)
    _, video = models.denoisers(PROMPT, NEGATIVE)
    list(sample(noise(), plan, video=video))
    assert [number for number, _ in calls] == [int(time < 1000 * BOUNDARY) for _, time in calls]
    assert {number for number, _ in calls} == {0, 1}
    goes_back = [(a, b) for a, b in itertools.pairwise(calls) if b[1] > a[1]]
    assert any(a[0] != b[0] for a, b in goes_back), "a move goes back over the boundary"


@pytest.mark.parametrize("lines", [[], [f"boundary_ratio = {BOUNDARY}"]])
def test_experts_and_boundary_belong_together(folder: Path, experts: Path, lines: list[str]) -> None:
    entry = wan_entry(experts if not lines else folder, *lines)
    for check in (lambda: list(verify(entry)), lambda: load(entry, "cpu")):
        with pytest.raises(
            ConfigurationError, match="boundary_ratio is the noise level at which transformer_2 takes over"
        ):
            check()
    wan_entry(folder)
