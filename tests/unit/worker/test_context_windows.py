"""Clips longer than the motion modules take: latents of diffusers' `enable_free_noise`, from the same seed."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models import attention
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Generator, Tensor

from sampler import AddedConditions, IncompatibleInputs, VideoDenoiser, free_noise, sample
from service.catalog.bounds import Range
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.errors import InvalidParameter
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from tests.diffusers_pipelines import CONFIG, NEGATIVE, PROMPT, Pipelines, assert_same
from tests.doc_examples import DOCS, example
from tests.factories import make_job
from tests.tiny_models import animatediff_without_image_parts, write_entry
from tests.tiny_sdxl import ADAPTER, POOLED, UNET
from tests.unit.worker.test_child_main import at_call, outcome, running
from worker.child.engine import Engine
from worker.messages import Done, Stop, Stopped
from worker.networks.context_windows import frame_weights
from worker.networks.loading import IncompatibleModels, load
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache
from worker.verify import verify

CPU = torch.device("cpu")
SEED = 5
WINDOWS = ContextWindows(length=4, stride=2)
SCHEMES = ("flat", "pyramid", "delayed_reverse_sawtooth")


def with_windows(entry: ModelEntry, windows: ContextWindows | None = WINDOWS, longest: int = 32) -> ModelEntry:
    frames = Range(default=4, min=1, max=longest)
    return entry.model_copy(update={"context_windows": windows, "num_frames": frames})


@dataclass
class Pair:
    """A tiny AnimateDiff, loaded by the worker and by diffusers, with one noise schedule."""

    engine: Engine
    pipeline: Any

    def generation(self, windows: ContextWindows | None, frames: int, **request: Any) -> Generation:
        given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "num_inference_steps": 2} | request
        return with_windows(self.engine.models.entry, windows).resolve(VideoRequest(num_frames=frames, **given))

    def ours(self, windows: ContextWindows | None, frames: int, **request: Any) -> Tensor:
        return self.engine.sample(self.generation(windows, frames, **request)).latents

    def theirs(self, windows: ContextWindows, frames: int, guidance: float) -> Tensor:
        self.pipeline.enable_free_noise(windows.length, windows.stride, windows.weighting_scheme, windows.noise_type)
        generator = Generator().manual_seed(SEED)
        # diffusers 0.42 repeats noise only if it is given that of one window (huggingface/diffusers#13653)
        is_given = windows.noise_type == "repeat_context"
        noise = torch.randn(1, 4, windows.length, 8, 8, generator=generator) if is_given else None
        return self.pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=32,
            width=32,
            num_frames=frames,
            num_inference_steps=2,
            guidance_scale=guidance,
            latents=noise,
            generator=generator,
            output_type="latent",
        ).frames


DDIM = {"sampler": {"name": "ddim"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = animatediff_without_image_parts(tmp_path_factory.mktemp("windows") / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(CONFIG))
    shutil.rmtree(folder / "image_scheduler")
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair(Engine(write_entry(folder, "animatediff"), CPU), Pipelines(folder).video)


# Frames: twice a window, and numbers that end between two windows: 1 frame after the last one, or 2.
CASES = [
    (ContextWindows(length=4, stride=2), 8, 1.0),
    (ContextWindows(length=4, stride=2), 8, 7.5),
    (ContextWindows(length=4, stride=1, weighting_scheme="delayed_reverse_sawtooth", noise_type="random"), 6, 7.5),
    (ContextWindows(length=3, stride=2, noise_type="repeat_context"), 6, 1.0),
    (ContextWindows(length=3, stride=2, noise_type="repeat_context"), 6, 7.5),
    (ContextWindows(length=4, stride=3, weighting_scheme="flat"), 9, 7.5),
    (ContextWindows(length=4, stride=4, weighting_scheme="flat", noise_type="random"), 10, 1.0),
    (ContextWindows(length=8, stride=3, weighting_scheme="delayed_reverse_sawtooth"), 12, 7.5),
]


@pytest.mark.sample(4)
@pytest.mark.parametrize(("windows", "frames", "guidance"), CASES)
def test_latents_are_those_of_diffusers(pair: Pair, windows: ContextWindows, frames: int, guidance: float) -> None:
    found = pair.ours(windows, frames, guidance_scale=guidance, **DDIM)
    assert_same(found, pair.theirs(windows, frames, guidance))


def test_last_window_is_averaged_where_diffusers_0_42_divides_by_the_weight_of_another_frame(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two or more frames in the last window alone: diffusers takes the weight of the first of them for all."""
    windows = ContextWindows(length=4, stride=3)
    found = pair.ours(windows, 9, guidance_scale=7.5, **DDIM)
    unchanged = pair.theirs(windows, 9, 7.5)
    code = inspect.cleandoc(inspect.getsource(FreeNoiseTransformerBlock.forward))
    assert code.count("+= weights[:, -last_frame_batch_length]") == 1
    code = code.replace("+= weights[:, -last_frame_batch_length]", "+= weights[:, -last_frame_batch_length:]")
    names = dict(vars(attention))
    exec(code, names)
    monkeypatch.setattr(FreeNoiseTransformerBlock, "forward", names["forward"])
    assert_same(found, pair.theirs(windows, 9, 7.5))
    assert (found - unchanged).abs().max() > 1e-2 * found.abs().max()


def test_free_init_around_windows_is_that_of_diffusers(pair: Pair) -> None:
    """The noise that it draws between two runs is ordinary, as there."""
    pair.pipeline.enable_free_init(num_iters=2)
    try:
        expected = pair.theirs(WINDOWS, 7, 7.5)
    finally:
        pair.pipeline.disable_free_init()
    assert_same(pair.ours(WINDOWS, 7, guidance_scale=7.5, sampler={"name": "freeinit", "iterations": 2}), expected)


@pytest.mark.parametrize("name", ["iv-mixed", "official"])
def test_other_samplers_call_the_network_with_diffusers_blocks(pair: Pair, name: str) -> None:
    models = pair.engine.models
    pair.pipeline.enable_free_noise(WINDOWS.length, WINDOWS.stride)
    generation = pair.generation(WINDOWS, 7, sampler={"name": name})
    texts = models.encode([PROMPT, NEGATIVE])
    image, _ = models.denoisers(texts[:1], texts[1:])
    video = VideoDenoiser(pair.pipeline.unet, texts[:1].video, texts[1:].video)
    video.max_frames = None
    noise = free_noise((1, 4, 7, 8, 8), SEED, length=WINDOWS.length, stride=WINDOWS.stride)
    *_, last = sample(noise, pair.engine.plan(generation), image=image, video=video)
    assert_same(pair.engine.sample(generation).latents, last.latents)


@pytest.mark.parametrize(("sampler", "frames"), [("ddim", 3), ("iv-mixed", 4)])
def test_clip_of_one_window_has_the_bytes_and_the_record_of_a_model_without(
    pair: Pair, sampler: str, frames: int
) -> None:
    request = {"sampler": {"name": sampler}}
    generation = pair.generation(WINDOWS, frames, **request)
    assert "context_windows" not in generation.model_dump_json()
    assert generation == pair.generation(None, frames, **request)
    image, video = pair.engine.models.denoisers(PROMPT, NEGATIVE, windows=WINDOWS)
    noise = torch.randn(1, 4, frames, 8, 8, generator=Generator().manual_seed(SEED))
    *_, last = sample(noise, pair.engine.plan(generation), image=image, video=video)
    assert torch.equal(last.latents, pair.engine.sample(generation).latents)


def test_image_model_alone_draws_every_frame_from_its_own_noise(pair: Pair) -> None:
    found = pair.ours(WINDOWS, 8, sampler={"name": "ddim", "network": "image"})
    frames = found.unbind(2)
    assert not any(torch.equal(a, b) for i, a in enumerate(frames) for b in frames[:i])


def test_library_takes_the_windows_of_the_entry_and_the_noise_of_the_documented_example(pair: Pair) -> None:
    models = replace(pair.engine.models, entry=with_windows(pair.engine.models.entry))
    names: dict[str, Any] = {"models": models}
    exec(example(DOCS / "sampler.md", "python", "free_noise"), names)
    assert torch.equal(names["latents"], free_noise((1, 4, 64, 8, 8), 7, length=4, stride=2))
    x = names["latents"][:, :, :7]
    with torch.no_grad():
        _, named = models.denoisers(PROMPT, NEGATIVE, windows=WINDOWS)
        expected = named(x, 500, 0.5, 7.5)
        _, default = models.denoisers(PROMPT, NEGATIVE)
        assert torch.equal(default(x, 500, 0.5, 7.5), expected)
    with pytest.raises(IncompatibleInputs, match="supports at most 32 frames"):
        models.denoisers(PROMPT, NEGATIVE, windows=None)[1](names["latents"], 500, 0.5, 7.5)


def test_direct_calls_of_the_network_stay_as_they_are(pair: Pair) -> None:
    unet = pair.engine.models.video_unet
    texts = pair.engine.models.encode(PROMPT).video.repeat(6, 1, 1)
    x = torch.randn(1, 4, 6, 8, 8, generator=Generator().manual_seed(1))
    with torch.no_grad():
        before = unet(x, 500, encoder_hidden_states=texts).sample
        pair.ours(WINDOWS, 8, **DDIM)
        assert torch.equal(unet(x, 500, encoder_hidden_states=texts).sample, before)


def test_low_memory_mode_changes_nothing_but_the_rounding(pair: Pair) -> None:
    generation, models = pair.generation(WINDOWS, 7, **DDIM), pair.engine.models
    expected = pair.engine.sample(generation).latents
    image, video = models.denoisers(PROMPT, NEGATIVE, windows=WINDOWS)
    image.sequential_cfg = video.sequential_cfg = True
    image.frames_at_once = 1
    noise = free_noise((1, 4, 7, 8, 8), SEED, length=4, stride=2)
    *_, last = sample(noise, pair.engine.plan(generation), image=image, video=video)
    assert_same(last.latents, expected)


def windowed(unet: Any, optimise: Optimise, compiler: BlockCompiler | None = None, **given: Any) -> VideoDenoiser:
    """A denoiser of this UNet with windows, and random texts of the width that it takes."""
    texts = torch.randn(2, 1, 5, unet.config.cross_attention_dim, generator=Generator().manual_seed(3))
    network = OptimisedNetwork(unet, optimise, TextKVCache(), compiler)
    video = VideoDenoiser(network, *texts, network_args={"context_windows": WINDOWS}, **given)
    video.max_frames = None
    return video


def with_diffusers_blocks(unet: Any) -> Any:
    """A copy of the UNet as diffusers' `enable_free_noise` makes it; its SDXL pipeline has no such method."""
    mixin: Any = AnimateDiffFreeNoiseMixin()
    mixin._free_noise_context_length, mixin._free_noise_context_stride = WINDOWS.length, WINDOWS.stride
    mixin._free_noise_weighting_scheme = WINDOWS.weighting_scheme
    mixin.device, mixin.dtype = CPU, torch.float32
    found = copy.deepcopy(unet)
    for block in (*found.down_blocks, *found.up_blocks):
        mixin._enable_free_noise_in_block(block)
    return found


def call(video: VideoDenoiser, frames: int = 7) -> Tensor:
    with torch.no_grad():
        return video(torch.randn(1, 4, frames, 8, 8, generator=Generator().manual_seed(1)), 500, 0.5, 7.5)


def test_compiled_networks_give_the_same_and_are_as_before_afterwards() -> None:
    torch.manual_seed(0)
    level: dict[str, Any] = {"block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 8}
    unet: Any = UNet2DConditionModel(
        **level,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    adapter = MotionAdapter(
        block_out_channels=(16,), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=2
    )
    torch.nn.init.normal_(adapter.down_blocks[0].motion_modules[0].proj_out.weight, std=0.2)
    unet = UNetMotionModel.from_unet2d(unet, adapter).eval()
    expected = call(windowed(unet, Optimise()))
    compiler = BlockCompiler("eager")
    video = windowed(unet, Optimise(compile=True), compiler)
    blocks = video.unet._motion.blocks
    assert blocks
    before = [block._compiled_call_impl for block in blocks]
    assert_same(call(video), expected)
    assert not compiler.has_failed
    assert [block._compiled_call_impl for block in blocks] == before
    assert not any("forward" in vars(block) for block in blocks)


def test_sdxls_motion_modules_take_windows_too() -> None:
    torch.manual_seed(0)
    adapter = MotionAdapter(**ADAPTER)
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:  # zero at first, which would hide the motion modules
            torch.nn.init.normal_(parameter, std=0.2)
    unet: Any = UNetMotionModel.from_unet2d(UNet2DConditionModel(**UNET), adapter).eval()
    added = AddedConditions(torch.randn(1, POOLED), torch.randn(1, POOLED), torch.tensor([32.0, 32, 0, 0, 32, 32]))
    ours = windowed(unet, Optimise(), added=added)
    theirs = VideoDenoiser(with_diffusers_blocks(unet), ours.cond, ours.uncond, added=added)
    assert_same(call(ours), call(theirs))


def test_job_is_stopped_in_one_worker_and_completed_byte_identically_in_the_next(pair: Pair, tmp_path: Path) -> None:
    # In 32x32 and 9 frames, x264 gives other bytes for the same frames now and then; not in larger ones.
    larger = copy.copy(pair.engine)
    larger.models = replace(larger.models, entry=larger.models.entry.model_copy(update={"sizes": ("64x64",)}))
    pair = Pair(larger, None)
    generation = pair.generation(WINDOWS, 6, num_inference_steps=3, **DDIM)
    job = make_job(generation=generation)
    with running(pair.engine, tmp_path / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    assert isinstance(undisturbed, Done)
    with running(pair.engine, tmp_path / "data") as child:
        with child.job(job) as pipe, at_call(pair.engine, 2, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, _ = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256


# -- what is refused -------------------------------------------------------------------------------------------------


def test_windows_longer_than_the_motion_adapter_are_refused_by_loading_and_verify(folder: Path) -> None:
    entry = with_windows(write_entry(folder, "animatediff"), ContextWindows(length=33))
    for check in (verify, lambda entry: load(entry, "cpu")):
        with pytest.raises(IncompatibleModels, match=r"windows.length=33, .* takes 32 frames; write 32 or less"):
            list(check(entry))


def test_more_frames_without_windows_are_refused_with_the_line_to_add(folder: Path) -> None:
    entry = with_windows(write_entry(folder, "animatediff"), None, longest=64)
    with pytest.raises(IncompatibleModels, match=r"write 32 or less, or add context_windows = \{ length = 32 \}"):
        load(entry, "cpu")


def test_job_whose_windows_the_loaded_motion_modules_cannot_see_is_refused(pair: Pair) -> None:
    """Its entry had another motion adapter when the job was created."""
    generation = pair.generation(WINDOWS, 8).model_copy(update={"context_windows": ContextWindows(length=33)})
    with pytest.raises(InvalidParameter, match="takes at most 32 frames"):
        pair.engine.sample(generation)


@pytest.mark.parametrize(
    ("length", "weights"),
    [(1, [1]), (2, [1, 1]), (4, [0.01, 2, 2, 1]), (5, [0.01, 0.01, 3, 2, 1]), (6, [0.01, 0.01, 3, 3, 2, 1])],
)
def test_sawtooth_has_a_weight_for_every_frame(length: int, weights: list[float]) -> None:
    """diffusers 0.42 has one too many for an odd length, which fails there."""
    assert frame_weights(length, "delayed_reverse_sawtooth") == weights
