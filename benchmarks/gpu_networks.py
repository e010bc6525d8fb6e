"""Full-size or tiny networks with random weights for speed benchmarks; only their configurations are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Family = Literal["animatediff", "modelscope"]
Size = Literal["full", "tiny"]
STEPS = 50
CALLS = {"image": 2, "video": 3}  # of an outer step of the released loop

# Layers at the end of a residual branch; scaled down, so that activations stay of order one through all blocks.
BORN_ZERO = "conv4.3.weight"
BRANCH_ENDS = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "proj_out.weight", BORN_ZERO)
BRANCH_SCALE = 0.5
# With a prediction of 0 latents grow 14.6 times in a run, 1 / sqrt(abar of the first step). The start and the
# predictions are small, so that every step stays in the range in which half precision is accurate enough.
START_SCALE, ANSWER_SCALE = 0.5, 0.1

LEVELS: dict[Size, dict[str, Any]] = {
    "full": {"block_out_channels": (320, 640, 1280, 1280)},
    "tiny": {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 8},
}
LATENTS = {"full": (1, 4, 16, 64, 64), "tiny": (1, 4, 2, 8, 8)}
TOKENS = {"full": 77, "tiny": 7}
WIDTHS: dict[Size, dict[str, int]] = {  # of text embeddings; AnimateDiff's two models use the same
    "full": {"image": 768, "modelscope": 1024},
    "tiny": {"image": 16, "modelscope": 24},
}


@dataclass(frozen=True)
class Pair:
    """If the family shares weights, `video` holds those of `image`. Texts are (negative prompt, prompt)."""

    family: Family
    image: Any
    video: Any
    vae: Any
    latents: Tensor
    image_texts: tuple[Tensor, Tensor]
    video_texts: tuple[Tensor, Tensor]

    def copy(self, dtype: torch.dtype | None = None) -> Pair:
        """With copies of the UNets that share weights as the originals do; `dtype` also applies to the texts."""
        image, video = copy.deepcopy((self.image, self.video))
        if dtype is None:
            return replace(self, image=image, video=video)
        with _quiet():
            image, video = image.to(dtype), video.to(dtype)
        image_texts, video_texts = (
            (without.to(dtype), prompt.to(dtype)) for without, prompt in (self.image_texts, self.video_texts)
        )
        return replace(self, image=image, video=video, image_texts=image_texts, video_texts=video_texts)

    @property
    def dtype(self) -> torch.dtype:
        return self.image_texts[0].dtype


@torch.no_grad()
def pair(family: Family, size: Size, device: torch.device, dtype: torch.dtype) -> Pair:
    torch.manual_seed(0)
    image_width = WIDTHS[size]["image"]
    video_width = WIDTHS[size].get(family, image_width)
    with device, _quiet():
        image = _unet(UNet2DConditionModel, size, image_width)
        if family == "animatediff":
            video: Any = UNetMotionModel.from_unet2d(image, _adapter(size))
            inside = video.state_dict(keep_vars=True)
            image.load_state_dict({name: inside[name] for name in image.state_dict()}, assign=True)
        else:
            video = _unet(UNet3DConditionModel, size, video_width)
        vae = AutoencoderKL(**_decoder(size))
        latents = START_SCALE * torch.randn(LATENTS[size])
        image_texts, video_texts = (
            (torch.randn(1, TOKENS[size], width, dtype=dtype), torch.randn(1, TOKENS[size], width, dtype=dtype))
            for width in (image_width, video_width)
        )
    weights = {id(weight): (name, weight) for unet in (image, video) for name, weight in unet.named_parameters()}
    for name, weight in weights.values():
        if name.endswith(BORN_ZERO):
            weight.normal_(std=weight[0].numel() ** -0.5)
        weight.mul_(BRANCH_SCALE if name.endswith(BRANCH_ENDS) else 1.0)
        weight.mul_(ANSWER_SCALE if name.startswith("conv_out") else 1.0)
    with _quiet():
        for network in (image, video, vae):
            network.eval().requires_grad_(False).to(dtype)
    if family == "animatediff":
        video_texts = image_texts
    return Pair(family, image, video, vae, latents, image_texts, video_texts)


def flops(family: Family, size: Size, steps: int = STEPS) -> float:
    """FLOPs of a clip as the released loop computes it, with zero-weight calls and decoding. Uses no memory."""
    meta = pair(family, size, torch.device("meta"), torch.float32)
    frames = LATENTS[size][2]
    both, t = torch.cat([meta.latents, meta.latents]), torch.zeros((), dtype=torch.int64, device="meta")
    image_text, video_text = torch.cat(meta.image_texts), torch.cat(meta.video_texts)
    per_frame = image_text.repeat_interleave(frames, dim=0)
    if family == "animatediff":
        video_text = per_frame
    step = {
        "image": _count(lambda: meta.image(both.transpose(1, 2).flatten(0, 1), t, encoder_hidden_states=per_frame)),
        "video": _count(lambda: meta.video(both, t, encoder_hidden_states=video_text)),
    }
    decoding = _count(lambda: meta.vae.decode(meta.latents[0].transpose(0, 1)))
    return steps * sum(step[name] * CALLS[name] for name in CALLS) + decoding


def _count(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def _unet(kind: Any, size: Size, width: int) -> Any:
    config = {**LEVELS[size], "cross_attention_dim": width, "sample_size": LATENTS[size][-1]}
    if size == "tiny":
        end = "3D" if kind is UNet3DConditionModel else "2D"
        config["down_block_types"] = (f"CrossAttnDownBlock{end}", f"DownBlock{end}")
        config["up_block_types"] = (f"UpBlock{end}", f"CrossAttnUpBlock{end}")
        config["attention_head_dim"] = 8 if end == "3D" else 2  # in 2D the number of heads: the config misnames it
    return kind(**config)


def _adapter(size: Size) -> Any:
    if size == "full":
        return MotionAdapter(use_motion_mid_block=False)
    return MotionAdapter(
        block_out_channels=LEVELS[size]["block_out_channels"],
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )


def _decoder(size: Size) -> dict[str, Any]:
    levels = {"full": (128, 256, 512, 512), "tiny": (8, 8)}[size]
    return {
        "block_out_channels": levels,
        "down_block_types": ("DownEncoderBlock2D",) * len(levels),
        "up_block_types": ("UpDecoderBlock2D",) * len(levels),
        "layers_per_block": {"full": 2, "tiny": 1}[size],
        "latent_channels": 4,
        "norm_num_groups": {"full": 32, "tiny": 4}[size],
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences diffusers' advice on from_pretrained."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
