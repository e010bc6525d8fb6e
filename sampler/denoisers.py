"""From a network to guided epsilon: classifier-free guidance, frame folding and prediction type, each in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sampler.errors import BadSetting, DoesNotFit
from sampler.schedule import PredictionType


class Denoiser(Protocol):
    """What the loop needs of a model."""

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float, *, uncond: float = 1.0) -> Tensor:
        """uncond * eps_u + guidance * (eps_c - eps_u), (B, C, F, h, w) float32, for latents at noise level `alpha`."""
        ...


class _GuidedDenoiser:
    """Classifier-free guidance on one network; subclasses say how a clip is laid out for it.

    Args:
        unet: called as `unet(x, timestep, encoder_hidden_states=text)`; returns a tensor, a tuple or has `.sample`.
        cond, uncond: text embeddings (B, tokens, dim) of the prompts and of the negative prompts. Their dtype is the
            dtype the network is run in; latents and epsilon stay float32.
        prediction_type: what the network was trained to return.

    Raises DoesNotFit if the two embeddings differ in shape, or if they are not as wide as the network's cross-attention
    (where it has a diffusers config that says so); BadSetting if the prediction type is unknown.
    """

    def __init__(
        self, unet: Any, cond: Tensor, uncond: Tensor, *, prediction_type: PredictionType = "epsilon"
    ) -> None:  # Any: diffusers' UNets share no type, and this package must not import diffusers
        if cond.shape != uncond.shape or cond.ndim != 3:
            raise DoesNotFit(
                f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must both be (batch, tokens, dim) and equal"
            )
        width = _configured(unet, "cross_attention_dim")
        if width not in (None, cond.shape[-1]):
            raise DoesNotFit(
                f"cond {tuple(cond.shape)} is {cond.shape[-1]} wide, the network's cross-attention takes {width}; "
                "each network needs the embeddings of its own text encoder"
            )
        if prediction_type not in ("epsilon", "v_prediction"):
            raise BadSetting(f"prediction_type={prediction_type!r} is not supported; use 'epsilon' or 'v_prediction'")
        self.unet = unet
        self.cond, self.uncond = cond, uncond
        self.prediction_type: PredictionType = prediction_type
        self.halves_apart = False  # half the memory for the two guidance halves, in two calls
        self.channels = _configured(unet, "in_channels")  # None: unknown

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float, *, uncond: float = 1.0) -> Tensor:
        if latents.ndim != 5 or len(latents) != len(self.cond):
            raise DoesNotFit(
                f"latents {tuple(latents.shape)} must be (batch, channels, frames, height, width) "
                f"with batch {len(self.cond)}, one for each text embedding"
            )
        if guidance in (0.0, uncond):  # one of the two halves has no weight
            eps = uncond * self._predict(latents, timestep, self.cond if guidance else self.uncond)
        else:
            if self.halves_apart:
                eps_u, eps_c = (self._predict(latents, timestep, text) for text in (self.uncond, self.cond))
            else:
                both = self._predict(torch.cat([latents, latents]), timestep, torch.cat([self.uncond, self.cond]))
                eps_u, eps_c = both.chunk(2)
            eps = uncond * eps_u + guidance * (eps_c - eps_u)
        if eps.shape != latents.shape:
            raise DoesNotFit(
                f"the network returned {tuple(eps.shape)} for latents {tuple(latents.shape)}; "
                "networks that also predict a variance, or take extra channels, are not supported"
            )
        if self.prediction_type == "v_prediction":  # guidance is linear, so converting after it is the same
            eps = alpha**0.5 * eps + uncond * (1 - alpha) ** 0.5 * latents  # arXiv:2202.00512 App. D
        return eps

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        raise NotImplementedError

    def _call(self, x: Tensor, timestep: int, text: Tensor, **network_args: Any) -> Tensor:
        # diffusers would upload an int and wait for it; a fill on the device itself waits for nothing.
        t = timestep if x.device.type == "cpu" else torch.full((), timestep, dtype=torch.int64, device=x.device)
        output = self.unet(x.to(text.dtype), t, encoder_hidden_states=text, **network_args)
        if not isinstance(output, Tensor):
            output = output.sample if hasattr(output, "sample") else output[0]
        return output.float()


class ImageDenoiser(_GuidedDenoiser):
    """An image model (IDM) on each frame by itself: the network sees (B*F, C, h, w).

    resize: (height, width) in latent pixels at which the network sees the frames, by nearest neighbour, and from which
    epsilon comes back. The released ModelScope code does so with 64x64, whatever the clip's size; where 64 is no
    multiple of that size it also resamples the latents themselves, which this does not. None: as they are.
    """

    def __init__(
        self,
        unet: Any,  # see _GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        resize: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type)
        if resize is not None and min(resize) < 1:
            raise BadSetting(f"resize={resize} must be a height and a width of at least 1 latent pixel")
        self.resize = resize
        self.frames_at_once: int | None = None  # all; fewer need less memory and more calls

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        frames, size = latents.shape[2], latents.shape[-2:]
        folded = _resized(latents.transpose(1, 2).flatten(0, 1), self.resize)  # (B*F, C, h, w)
        texts = text.repeat_interleave(frames, dim=0)
        n = self.frames_at_once or len(folded)
        parts = [self._call(folded[i : i + n], timestep, texts[i : i + n]) for i in range(0, len(folded), n)]
        eps = _resized(torch.cat(parts), size)
        return eps.view(-1, frames, *eps.shape[1:]).transpose(1, 2)


class VideoDenoiser(_GuidedDenoiser):
    """A video model (VDM) on the whole clip: the network sees (B, C, F, h, w).

    text_per_frame: whether the network wants its text repeated for every frame. diffusers' `UNetMotionModel` does
        since 0.31, `UNet3DConditionModel` repeats by itself. None: recognised by `UNetMotionModel`'s interface.
    network_args: more keyword arguments of the network, the same in every call; VideoCrafter's takes {"fps": 24}.
    """

    def __init__(
        self,
        unet: Any,  # see _GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        text_per_frame: bool | None = None,
        network_args: Mapping[str, Any] | None = None,  # Any: what a network takes is its own affair
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type)
        self.text_per_frame = hasattr(unet, "save_motion_modules") if text_per_frame is None else text_per_frame
        self.network_args = dict(network_args or {})

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        repeated = text.repeat_interleave(latents.shape[2], dim=0) if self.text_per_frame else text
        return self._call(latents, timestep, repeated, **self.network_args)


def _resized(frames: Tensor, size: Sequence[int] | None) -> Tensor:
    """(N, C, h, w) -> (N, C, *size) by nearest neighbour; unchanged where it is that size already."""
    if size is None or tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size=tuple(size), mode="nearest")


def _configured(unet: Any, key: str) -> int | None:
    """An integer of the network's diffusers config; None where there is none."""
    value = getattr(getattr(unet, "config", None), key, None)
    return value if isinstance(value, int) else None
