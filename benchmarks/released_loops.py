"""The paper's released loops, transcribed line by line on diffusers' schedulers: the baseline of all timings.

Source: the AnimateDiff and ModelScope files of github xie-lab-ml/IV-mixed-Sampler, commit 54a7d5e. Two corrections are
needed today: embeddings are repeated for every frame, which diffusers 0.31 moved out of the network, and the schedulers
are created once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER: dict[str, Any] = {
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
}
Family = Literal["animatediff", "modelscope"]
GUIDANCE, ZIGZAG_GUIDANCE = 7.5, 4.0


@torch.no_grad()
def released_loop(
    latents: Tensor,
    image_unet: Callable[..., Any],
    video_unet: Callable[..., Any],
    image_text: Tensor,
    video_text: Tensor,
    steps: int = 50,
    *,
    family: Family = "animatediff",
) -> Iterator[Tensor]:
    """Yields the latents (1, C, F, h, w), in the networks' dtype, after every step.

    Args:
        latents: start noise.
        image_text, video_text: [negative, prompt], (2, tokens, dim).
        family: ModelScope needs latents of 64x64 pixels, so that the released resizing to that size changes nothing.
    """
    scheduler = DDIMScheduler(**SCHEDULER)
    inverse = DDIMInverseScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    for each in (scheduler, inverse):
        each.set_timesteps(steps, device=latents.device)
    gap = scheduler.config.num_train_timesteps // steps
    texts = _repeated(image_text, video_text, latents.shape[2], family)
    guided_epsilon = _GuidedEpsilon(scheduler, image_unet, video_unet, *texts)
    for t in scheduler.timesteps:
        before = t - gap if t - gap > 0 else t - t
        twice_before = t - 2 * gap if t - 2 * gap > 0 else t - t
        first, second = (before, t) if family == "animatediff" else (t, before)
        x = latents
        noise = guided_epsilon("image", x, first, ZIGZAG_GUIDANCE)
        x = scheduler.step(noise, first, x).prev_sample
        noise = guided_epsilon("video", x, second, ZIGZAG_GUIDANCE)
        x = scheduler.step(noise, second, x).prev_sample
        noise = guided_epsilon("image", x, twice_before, -ZIGZAG_GUIDANCE)
        x = inverse.step(noise, before, x).prev_sample
        noise = guided_epsilon("video", x, before, -ZIGZAG_GUIDANCE)
        x = inverse.step(noise, t, x).prev_sample
        noise = guided_epsilon("video", x, t, GUIDANCE)
        latents = scheduler.step(noise, t, x).prev_sample
        yield latents


@dataclass(frozen=True)
class _GuidedEpsilon:
    scheduler: DDIMScheduler
    image_unet: Callable[..., Any]
    video_unet: Callable[..., Any]
    image_text: Tensor
    video_text: Tensor

    def __call__(self, model: str, x: Tensor, t: Tensor, guidance: float) -> Tensor:
        both = self.scheduler.scale_model_input(torch.cat([x] * 2), t)
        if model == "image":
            folded = both.permute(0, 2, 1, 3, 4).flatten(0, 1)
            noise = self.image_unet(folded, t, encoder_hidden_states=self.image_text).sample
            noise = noise.reshape(2, x.shape[2], *noise.shape[1:]).permute(0, 2, 1, 3, 4)
        else:
            noise = self.video_unet(both, t, encoder_hidden_states=self.video_text).sample
        uncond, cond = noise.chunk(2)
        return uncond + guidance * (cond - uncond)


def _repeated(image_text: Tensor, video_text: Tensor, frames: int, family: Family) -> tuple[Tensor, Tensor]:
    """The text of both networks, repeated for every frame; UNet3DConditionModel repeats it itself."""
    of_frames = image_text.repeat_interleave(frames, dim=0)
    return of_frames, video_text.repeat_interleave(frames, dim=0) if family == "animatediff" else video_text
