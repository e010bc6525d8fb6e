"""FreeInit against diffusers: its filter, its mixin around a toy network, and its AnimateDiff pipeline."""

from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNetMotionModel
from diffusers.pipelines.free_init_utils import FreeInitMixin
from torch import Generator, Tensor

from sampler import NoiseSchedule, Restart, VideoDenoiser, ddim_plan, free_init_plan, mixed_plan, sample, seeded_noise
from sampler.freeinit import low_pass_filter
from tests.unit.sampler.networks import Smooth, texts
from tests.unit.sampler.test_denoisers import small_unet

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SCHEDULE = NoiseSchedule.from_config(CONFIG)
METHODS = ("butterworth", "gaussian", "ideal")


def free_init(x: Tensor, video: VideoDenoiser, seed: int, *, steps: int, iterations: int, **settings: Any) -> Tensor:
    plan = free_init_plan(ddim_plan(SCHEDULE, steps, guidance=7.5), SCHEDULE, iterations, **settings)
    return list(sample(x, plan, video=video, generator=Generator().manual_seed(seed)))[-1].latents


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(16, 8, 8), (8, 6, 10), (3, 5, 4), (1, 4, 4)])
@pytest.mark.parametrize("cutoffs", [(0.25, 0.25), (0.5, 0.25), (0.25, 1.0)])
def test_filter_is_that_of_diffusers(method: Any, shape: tuple[int, int, int], cutoffs: tuple[float, float]) -> None:
    theirs = FreeInitMixin()._get_free_init_freq_filter(shape, "cpu", method, 4, *cutoffs)
    ours = low_pass_filter(Restart(0.0, method, 4, *cutoffs), *shape)
    torch.testing.assert_close(torch.fft.fftshift(ours), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 4, 4, 6, 6), (1, 4, 3, 5, 4)])
def test_loop_equals_the_one_around_diffusers_mixin(method: Any, shape: tuple[int, ...]) -> None:
    theirs = FreeInitMixin()
    theirs.scheduler = DDIMScheduler(**CONFIG)
    settings = {"order": 2, "spatial_stop_frequency": 0.5, "temporal_stop_frequency": 0.25}
    theirs.enable_free_init(num_iters=3, method=method, **settings)
    network, (cond, uncond), generator = Smooth(0.2, mixing=True), texts(shape[0]), Generator().manual_seed(4)
    x = expected = seeded_noise(shape, 3)
    for k in range(3):
        expected, timesteps = theirs._apply_free_init(expected, k, 6, torch.device("cpu"), torch.float32, generator)
        for t in timesteps:
            out_u, out_c = (network(expected, int(t), text) for text in (uncond, cond))
            expected = theirs.scheduler.step(out_u + 7.5 * (out_c - out_u), t, expected).prev_sample
    video = VideoDenoiser(network, cond, uncond)
    cutoffs = {"spatial_cutoff": 0.5, "temporal_cutoff": 0.25}
    actual = free_init(x, video, 4, steps=6, iterations=3, method=method, order=2, **cutoffs)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_animatediff_with_free_init_equals_diffusers_pipeline() -> None:
    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    unet = UNetMotionModel.from_unet2d(small_unet(), adapter).eval()
    pipeline = AnimateDiffPipeline(None, None, None, unet, None, DDIMScheduler(**CONFIG))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.enable_free_init(num_iters=2)
    cond, uncond, x = torch.randn(1, 5, 8), torch.randn(1, 5, 8), seeded_noise((1, 4, 4, 8, 8), 5)
    expected = pipeline(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        num_frames=4,
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=7.5,
        latents=x,
        generator=Generator().manual_seed(6),
        output_type="latent",
    ).frames
    actual = free_init(x, VideoDenoiser(unet, cond, uncond), 6, steps=5, iterations=2)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_first_iteration_is_the_plan_itself_and_the_clip_changes_after_it() -> None:
    plan, x, (cond, uncond) = mixed_plan(SCHEDULE, 4, combination="V-V"), seeded_noise((1, 4, 4, 4, 4), 7), texts()
    video = VideoDenoiser(Smooth(0.2, mixing=True), cond, uncond)
    alone = list(sample(x, plan, video=video))
    generator = Generator().manual_seed(8)
    around = list(sample(x, free_init_plan(plan, SCHEDULE, 2), video=video, generator=generator))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(alone, around, strict=False))
    assert not torch.allclose(around[-1].latents, alone[-1].latents)
