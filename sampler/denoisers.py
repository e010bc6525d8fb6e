"""From a network to guided epsilon: classifier-free guidance, frame folding and prediction type, each in one place."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from sampler.schedule import PredictionType


class Denoiser(Protocol):
    """What the loop needs of a model."""

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float) -> Tensor:
        """Guided epsilon (B, C, F, h, w) float32 for latents of that shape at noise level `alpha`."""
        ...


class _GuidedDenoiser:
    """Classifier-free guidance on one network; subclasses say how a clip is laid out for it.

    Args:
        unet: called as `unet(x, timestep, encoder_hidden_states=text)`; returns a tensor, a tuple or has `.sample`.
        cond, uncond: text embeddings (B, tokens, dim) of the prompts and of the negative prompts. Their dtype is the
            dtype the network is run in; latents and epsilon stay float32.
        prediction_type: what the network was trained to return.

    Raises ValueError if the two embeddings differ in shape or the prediction type is unknown.
    """

    def __init__(
        self, unet: Any, cond: Tensor, uncond: Tensor, *, prediction_type: PredictionType = "epsilon"
    ) -> None:  # Any: diffusers' UNets share no type, and this package must not import diffusers
        if cond.shape != uncond.shape or cond.ndim != 3:
            raise ValueError(
                f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must both be (batch, tokens, dim) and equal"
            )
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type={prediction_type!r} is not supported; use 'epsilon' or 'v_prediction'")
        self.unet = unet
        self.cond, self.uncond = cond, uncond
        self.prediction_type: PredictionType = prediction_type

    def __call__(self, latents: Tensor, timestep: int, alpha: float, guidance: float) -> Tensor:
        if latents.ndim != 5 or len(latents) != len(self.cond):
            raise ValueError(
                f"latents {tuple(latents.shape)} must be (batch, channels, frames, height, width) "
                f"with batch {len(self.cond)}, one for each text embedding"
            )
        if guidance in (0.0, 1.0):  # one of the two halves has no weight
            eps = self._predict(latents, timestep, self.cond if guidance else self.uncond)
        else:
            both = self._predict(torch.cat([latents, latents]), timestep, torch.cat([self.uncond, self.cond]))
            eps_u, eps_c = both.chunk(2)
            eps = eps_u + guidance * (eps_c - eps_u)
        if self.prediction_type == "v_prediction":  # guidance is linear, so converting after it is the same
            eps = alpha**0.5 * eps + (1 - alpha) ** 0.5 * latents  # arXiv:2202.00512 App. D
        return eps

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        raise NotImplementedError

    def _call(self, x: Tensor, timestep: int, text: Tensor) -> Tensor:
        output = self.unet(x.to(text.dtype), timestep, encoder_hidden_states=text)
        if not isinstance(output, Tensor):
            output = output.sample if hasattr(output, "sample") else output[0]
        return output.float()


class ImageDenoiser(_GuidedDenoiser):
    """An image model (IDM) on each frame by itself: the network sees (B*F, C, h, w)."""

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        frames = latents.shape[2]
        folded = latents.transpose(1, 2).flatten(0, 1)  # (B*F, C, h, w)
        eps = self._call(folded, timestep, text.repeat_interleave(frames, dim=0))
        return eps.view(-1, frames, *eps.shape[1:]).transpose(1, 2)


class VideoDenoiser(_GuidedDenoiser):
    """A video model (VDM) on the whole clip: the network sees (B, C, F, h, w).

    text_per_frame: whether the network wants its text repeated for every frame. diffusers' `UNetMotionModel` does
    since 0.31, `UNet3DConditionModel` repeats by itself. None: recognised by `UNetMotionModel`'s interface.
    """

    def __init__(
        self,
        unet: Any,  # see _GuidedDenoiser
        cond: Tensor,
        uncond: Tensor,
        *,
        prediction_type: PredictionType = "epsilon",
        text_per_frame: bool | None = None,
    ) -> None:
        super().__init__(unet, cond, uncond, prediction_type=prediction_type)
        self.text_per_frame = hasattr(unet, "save_motion_modules") if text_per_frame is None else text_per_frame

    def _predict(self, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        repeated = text.repeat_interleave(latents.shape[2], dim=0) if self.text_per_frame else text
        return self._call(latents, timestep, repeated)
