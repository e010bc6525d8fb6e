"""A first frame kept by SparseCtrl: latents equal to those of diffusers' own pipeline, in every plan and switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.animatediff import pipeline_animatediff_sparsectrl as theirs
from PIL import Image
from torch import Tensor, nn

from sampler import (
    IncompatibleInputs,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    sample,
    seeded_noise,
    zigzag_plan,
)
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from tests.diffusers_pipelines import CONFIG, GUIDANCE, NEGATIVE, PROMPT, assert_same
from tests.factories import make_job
from tests.tiny_sparse_control import FRAMES, STEPS, diffusers_pipeline, generation, save_controlled
from tests.unit.worker.test_child_main import undisturbed_and_resumed
from tests.unit.worker.test_low_memory import room_for
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.fingerprint import weights_digest
from worker.child.mp4 import read_mp4, write_mp4
from worker.child.reference_latents import first_frame_of
from worker.messages import Done
from worker.networks.loading import load
from worker.networks.models import Models
from worker.networks.sparse_control import LEVELS_KEPT, FirstFrame

SHAPE = (1, 4, FRAMES, 8, 8)
SCHEDULE = NoiseSchedule.from_config(CONFIG)
NONE = Optimise(cache_text_kv=False, cache_time_embeds=False)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return save_controlled(tmp_path_factory.mktemp("sparse") / "model")


@pytest.fixture(scope="module")
def engine(entry: ModelEntry) -> Engine:
    return Engine(entry, torch.device("cpu"))


@pytest.fixture(scope="module")
def models(engine: Engine) -> Models:
    return engine.models


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32x32 pixels."""
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(pixels.numpy()).save(file)
    return file


@pytest.fixture(scope="module")
def first_frame(engine: Engine, entry: ModelEntry, picture: Path) -> FirstFrame:
    return first_frame_of(engine.models, generation(entry, picture, {}), picture)


@pytest.fixture(scope="module")
def pipeline(entry: ModelEntry) -> Any:
    return diffusers_pipeline(entry)


def run(plan: Plan, image: Any, video: Any) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return list(sample(seeded_noise(SHAPE, 5), plan, image=image, video=video, generator=generator))[-1].latents


def ours(models: Models, plan: Plan, first_frame: FirstFrame | None) -> Tensor:
    return run(plan, *models.denoisers(PROMPT, NEGATIVE, first_frame=first_frame))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_latents_are_those_of_diffusers(
    engine: Engine,
    entry: ModelEntry,
    pipeline: Any,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    guidance: float,
    scale: float,
) -> None:
    # diffusers draws from the autoencoder's distribution, without a generator
    monkeypatch.setattr(theirs, "retrieve_latents", partial(theirs.retrieve_latents, sample_mode="argmax"))
    expected = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=32,
        width=32,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        conditioning_frames=Image.open(picture),
        controlnet_frame_indices=[0],
        controlnet_conditioning_scale=scale,
        latents=seeded_noise(SHAPE, 5),
        output_type="latent",
    ).frames
    wanted = generation(entry, picture, {"name": "ddim"}, guidance_scale=guidance, conditioning_scale=scale)
    assert_same(engine.sample(wanted, reference=picture).latents, expected)
    without = engine.sample(wanted.model_copy(update={"reference": None})).latents
    assert (without - expected).abs().max() > 0.01 * expected.abs().max()  # the frame counts


class Plain:
    """Both networks called as diffusers' pipeline calls them, at every call."""

    def __init__(self, models: Models, first_frame: FirstFrame) -> None:
        self.models, self.config = models, models.video_unet.config
        self.condition, self.mask = torch.zeros(SHAPE), torch.zeros(1, 1, *SHAPE[2:])
        self.condition[:, :, [0]], self.mask[:, :, 0] = first_frame.latents, 1

    def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        down, middle = self.models.sparse_control(
            x,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=self.condition,
            conditioning_mask=self.mask,
            return_dict=False,
        )
        return self.models.video_unet(
            x,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample


def plainly(models: Models, plan: Plan, first_frame: FirstFrame) -> Tensor:
    cond, uncond = models.encode(PROMPT), models.encode(NEGATIVE)
    image, _ = models.denoisers(cond, uncond)
    video = VideoDenoiser(Plain(models, first_frame), cond.video, uncond.video, text_per_frame=True)
    return run(plan, image, video)


MIXED = partial(mixed_plan, SCHEDULE, STEPS, guidance=7.5)
PLANS: dict[str, Callable[[], Plan]] = {
    "IV-VI": partial(MIXED, combination="IV-VI"),
    "VI-IV, go back first": partial(MIXED, combination="VI-IV", order="goback_first"),
    "R-V": partial(MIXED, combination="R-V", order="goback_first"),
    "one branch": partial(MIXED, combination="V-I", video_guidance=(0.0, 1.0), interval_guidance=1, solver="dpmpp-2m"),
    "zigzag": partial(zigzag_plan, SCHEDULE, STEPS, guidance=7.5),
    "fused": partial(fused_plan, SCHEDULE, STEPS, guidance=7.5),
    "freeinit": lambda: free_init_plan(ddim_plan(SCHEDULE, 2, guidance=7.5), SCHEDULE, 2),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", PLANS)
def test_every_call_of_the_video_model_gets_the_residuals(models: Models, first_frame: FirstFrame, name: str) -> None:
    plan = PLANS[name]()
    expected, found = plainly(models, plan, first_frame), ours(models, plan, first_frame)
    assert_same(found, expected)
    assert (found - ours(models, plan, None)).abs().max() > 0.01 * expected.abs().max()


@pytest.fixture
def calls(models: Models) -> Iterator[list[int]]:
    """Rows of every call of the SparseCtrl network."""
    rows: list[int] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        rows.append(len(args[0]))

    hook = models.sparse_control.register_forward_pre_hook(note)
    yield rows
    hook.remove()


def test_residuals_are_computed_once_for_each_level(models: Models, first_frame: FirstFrame, calls: list[int]) -> None:
    plan = MIXED(combination="IV-IV")
    ours(models, plan, first_frame)
    timesteps = {call.timestep for step in plan for move in step for call in move.calls if call.model == "video"}
    assert calls == [2] * len(timesteps)  # both branches of guidance


def test_low_memory_keeps_nothing_and_calls_one_branch_at_a_time(
    models: Models, first_frame: FirstFrame, calls: list[int]
) -> None:
    plan = MIXED(combination="IV-IV")
    expected = ours(models, plan, first_frame)
    calls.clear()
    image, video = models.denoisers(PROMPT, NEGATIVE, first_frame=first_frame)
    video.sequential_cfg, video.unet.levels_kept = True, 0
    assert_same(run(plan, image, video), expected)
    of_video = [call for step in plan for move in step for call in move.calls if call.model == "video"]
    assert calls == [1] * 2 * len(of_video)


def test_no_more_levels_are_kept_than_said(models: Models, first_frame: FirstFrame, calls: list[int]) -> None:
    _, video = models.denoisers(PROMPT, NEGATIVE, first_frame=first_frame)
    x = torch.zeros(SHAPE)
    with torch.no_grad():
        for timestep in (*range(LEVELS_KEPT + 1), LEVELS_KEPT, 0):
            video(x, timestep, 0.5, 7.5)
    assert len(calls) == LEVELS_KEPT + 2


SWITCHES = {
    "cache_text_kv": NONE.model_copy(update={"cache_text_kv": True}),
    "cache_time_embeds": NONE.model_copy(update={"cache_time_embeds": True}),
    "channels_last": NONE.model_copy(update={"channels_last": True}),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", SWITCHES)
def test_switches_change_results_by_rounding_only(entry: ModelEntry, first_frame: FirstFrame, name: str) -> None:
    models = load(entry.model_copy(update={"optimise": SWITCHES[name]}), "cpu")
    plan = ddim_plan(SCHEDULE, 2, guidance=7.5)
    assert_same(ours(models, plan, first_frame), plainly(models, plan, first_frame))


def test_a_text_is_projected_once_for_the_control_network_too(models: Models, first_frame: FirstFrame) -> None:
    ours(models, ddim_plan(SCHEDULE, 2, guidance=7.5), first_frame)
    modules = [module for unet in models.unets[1:] for module in unet.modules()]
    assert len(models.text_kv_cache) == sum(getattr(module, "is_cross_attention", False) for module in modules)


def test_weights_are_counted_and_in_the_digest(entry: ModelEntry, models: Models) -> None:
    assert entry.path is not None
    without = load(write_entry_without(entry), "cpu")
    size = sum(x.nbytes for x in models.sparse_control.state_dict().values())
    assert models.weights_bytes == without.weights_bytes + size
    assert weights_digest(models) != weights_digest(without)


def write_entry_without(entry: ModelEntry) -> ModelEntry:
    components = {name: c for name, c in entry.all_components.items() if name != "sparse_control"}
    return entry.model_copy(update={"path": None, "components": components})


def test_what_cannot_be_kept_is_refused(entry: ModelEntry, models: Models, first_frame: FirstFrame) -> None:
    with pytest.raises(IncompatibleInputs, match="the model has no component sparse_control"):
        load(write_entry_without(entry), "cpu").denoisers(PROMPT, first_frame=first_frame)
    with pytest.raises(IncompatibleInputs, match=r"must be \(1, 4, 1, h, w\)"):
        models.denoisers(PROMPT, first_frame=FirstFrame(torch.zeros(SHAPE)))
    video = models.denoisers(PROMPT, first_frame=FirstFrame(torch.zeros(1, 4, 1, 8, 4)))[1]
    with pytest.raises(IncompatibleInputs, match="of another size than the clip's"):
        video(torch.zeros(SHAPE), 500, 0.5, 1.0)


# -- through the engine and the child's main loop --------------------------------------------------------------------

NOISY = {"combination": "R-V", "order": "goback_first"}  # draws in every step


def test_job_stopped_in_one_worker_completes_byte_identically_in_the_next(
    engine: Engine, entry: ModelEntry, picture: Path, tmp_path: Path
) -> None:
    job = make_job(generation=generation(entry, picture, NOISY))
    assert job.generation.reference is not None
    assert job.generation.reference.use == "first_frame"
    undisturbed, resumed = undisturbed_and_resumed(engine, job, picture, tmp_path)
    assert isinstance(undisturbed, Done)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256


def test_run_resumed_after_any_step_gives_the_same_bytes_and_only_with_the_same_frame(
    engine: Engine, entry: ModelEntry, picture: Path, tmp_path: Path
) -> None:
    wanted, states = generation(entry, picture, NOISY), list[Checkpoint]()
    expected = engine.sample(wanted, on_step=states.append, reference=picture).latents
    assert [state.step for state in states] == [1, 2, 3]
    resume = tmp_path / "checkpoint"
    for state in states:
        state.write(resume)
        assert torch.equal(engine.sample(wanted, resume=resume, reference=picture).latents, expected)
    done: list[Checkpoint] = []
    other = generation(entry, picture, NOISY, conditioning_scale=0.5)
    engine.sample(other, on_step=done.append, resume=resume, reference=picture)
    assert len(done) == STEPS


def test_of_a_clip_the_first_frame_is_kept(engine: Engine, entry: ModelEntry, tmp_path: Path) -> None:
    """However few frames it has."""
    noise = torch.randint(0, 256, (2, 4, 4, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    clip, picture = tmp_path / "clip.mp4", tmp_path / "first.png"
    write_mp4(noise.repeat_interleave(8, 1).repeat_interleave(8, 2).numpy(), clip, fps=8)
    Image.fromarray(read_mp4(clip)[0]).save(picture)
    sampler = {"name": "ddim"}
    found = generation(entry, clip, sampler, reference_use="first_frame", num_inference_steps=1)
    expected = generation(entry, picture, sampler, num_inference_steps=1)
    latents = [engine.sample(each, reference=file).latents for each, file in ((found, clip), (expected, picture))]
    assert (latents[0] - latents[1]).abs().max() <= 0.02 * latents[1].abs().max()  # two decoders


def test_control_network_without_room_is_called_with_one_half_of_the_guidance_at_a_time(
    engine: Engine, entry: ModelEntry, picture: Path
) -> None:
    wanted = generation(entry, picture, {"name": "ddim"})
    expected = engine.sample(wanted, reference=picture).latents
    with room_for(engine.models.sparse_control, FRAMES) as fitted:
        found = engine.sample(wanted, reference=picture).latents
    assert fitted == [FRAMES] * 2 * STEPS
    assert_same(found, expected)


def test_frame_that_is_to_be_kept_is_asked_for(engine: Engine, entry: ModelEntry, picture: Path) -> None:
    with pytest.raises(ValueError, match="keeps a first frame; pass its file as reference="):
        engine.sample(generation(entry, picture, {}))


def test_warm_up_calls_the_control_network(engine: Engine, entry: ModelEntry, calls: list[int]) -> None:
    engine.warm_up(entry.default_generation)
    assert calls
