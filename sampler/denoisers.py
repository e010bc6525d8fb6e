"""The two denoisers: how an image model and a video model take the latents of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sampler.errors import InvalidSetting
from sampler.guidance import (
    AddedConditions,
    Arguments,
    GuidedDenoiser,
    Text,
    Texts,
    configured,
    network_output,
)
from sampler.prediction import PredictionType
from sampler.validation import one_of

Frames = Literal["all", "first"]


class ImageDenoiser(GuidedDenoiser):
    """An image model (IDM) applied to each frame independently; the network's input is (B*F, C, h, w).

    Args:
        unet, cond, uncond, prediction_type, added: see `GuidedDenoiser`.
        resize: (height, width) in latent pixels at which the network sees the frames. Latents and epsilon are resized
            by nearest neighbour. The released ModelScope code uses (64, 64) for clips of every size; where 64 is no
            multiple of that size it also resamples the latents themselves, which this does not. None: no resizing.
        frames: "all"; or "first", the only latent frame that holds a picture where the autoencoder compresses time
            causally, as Wan's: the model is called for it alone and adds nothing to the others. That works in plans
            where the image model adds to the video model's prediction, those of `fused_plan`; a move of its own would
            leave the other frames at another noise level, so `sample` refuses other plans with IncompatibleInputs.

    Attributes:
        frames_at_once: frames in one network call; fewer need less memory and more calls. None: all.

    Raises:
        IncompatibleInputs, InvalidSetting: see `GuidedDenoiser`; InvalidSetting also for a `resize` or `frames` that
            is not possible.
    """

    kind: ClassVar[str] = "image"

    def __init__(
        self,
        unet: Any,  # see GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        added: AddedConditions | None = None,
        resize: tuple[int, int] | None = None,
        frames: Frames = "all",
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type, added=added)
        if resize is not None and min(resize) < 1:
            raise InvalidSetting(f"resize={resize} must be a height and a width of at least 1 latent pixel")
        one_of("frames", frames, get_args(Frames))
        self.resize, self.frames = resize, frames
        self.only_adds = frames == "first"
        self.frames_at_once: int | None = None

    def visible(self, latents: Tensor) -> Tensor:
        return latents[:, :, :1] if self.only_adds else latents

    def parts(self, x: Tensor, texts: Texts) -> list[tuple[Tensor, Texts]]:
        if self.frames_at_once is None:
            return super().parts(x, texts)
        # A caching network recognises a text by its identity: a single text stays the same object.
        text_of_clip = [one for text in texts for one in ([text] if len(text) == 1 else torch.split(text, 1))]
        return [
            (part, (text,))
            for clip, text in zip(x.chunk(len(text_of_clip)), text_of_clip, strict=True)
            for part in torch.split(clip, self.frames_at_once)
        ]

    def input_shape(self, latents: Tensor) -> tuple[int, ...]:
        b, c, f, h, w = latents.shape
        return b * f, c, h, w

    def as_clips(self, x: Tensor, latents: Tensor) -> Tensor:
        b, c, f, h, w = latents.shape
        return x.view(-1, b, f, c, h, w).transpose(2, 3)

    def predict(self, x: Tensor, timestep: float | Tensor, text: Text, arguments: Arguments) -> Tensor:
        seen = _resized(x, self.resize)
        output = network_output(self.unet(seen, timestep, encoder_hidden_states=text, **arguments), seen)
        return _resized(output, x.shape[-2:])


class VideoDenoiser(GuidedDenoiser):
    """A video model (VDM) applied to the whole clip; the network's input is (B, C, F, h, w).

    A network whose diffusers config has `motion_max_seq_length` (AnimateDiff) refuses clips of more frames, unless
    `max_frames` is set to None: with context windows it takes any number.

    Args:
        unet, cond, uncond, prediction_type, added: see `GuidedDenoiser`.
        text_per_frame: whether the network needs its text repeated for every frame. `UNetMotionModel` does since
            diffusers 0.31, `UNet3DConditionModel` repeats it itself. None: true for networks with the interface of
            `UNetMotionModel`.
        network_args: further keyword arguments for every network call; VideoCrafter's takes {"fps": 24}.

    Raises:
        IncompatibleInputs, InvalidSetting: see `GuidedDenoiser`.
    """

    kind: ClassVar[str] = "video"

    def __init__(
        self,
        unet: Any,  # see GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        added: AddedConditions | None = None,
        text_per_frame: bool | None = None,
        network_args: Mapping[str, Any] | None = None,  # Any: each network defines its arguments
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type, added=added)
        self.text_per_frame = hasattr(unet, "save_motion_modules") if text_per_frame is None else text_per_frame
        self.network_args = dict(network_args or {})
        self.max_frames = configured(unet, "motion_max_seq_length")

    def input_shape(self, latents: Tensor) -> tuple[int, ...]:
        return tuple(latents.shape)

    def as_clips(self, x: Tensor, latents: Tensor) -> Tensor:
        return x.view(-1, *latents.shape)

    def predict(self, x: Tensor, timestep: float | Tensor, text: Text, arguments: Arguments) -> Tensor:
        return network_output(self.unet(x, timestep, encoder_hidden_states=text, **arguments, **self.network_args), x)


def _resized(frames: Tensor, size: Sequence[int] | None) -> Tensor:
    """(N, C, h, w) -> (N, C, *size) by nearest neighbour."""
    if size is None or tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="nearest")
