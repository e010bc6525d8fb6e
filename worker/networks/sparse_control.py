"""A video network that keeps a given first frame: SparseCtrl RGB (arXiv:2311.16933) around it.

The SparseCtrl network ("sparse condition encoder" in the paper) reads the latents of the frame and a mask that says
which frame is given, not the noisy latents. What it returns is added to the skip connections of the video network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sampler import IncompatibleInputs

Texts = tuple[Tensor, ...]
Residuals = tuple[tuple[Tensor, ...], Tensor]  # of the way down, of the middle block

# One step of IV-IV calls the video model at so many levels. The residuals of one take 430 MB with Stable Diffusion 1.5
# in float16, 512x512 and 16 frames.
LEVELS_KEPT = 3


@dataclass(frozen=True)
class FirstFrame:
    """The frame that a clip begins with.

    Args:
        latents: (1, C, 1, h, w), scaled as the latents of the diffusion models.
        scale: weight of the residuals, diffusers' `controlnet_conditioning_scale`.
    """

    latents: Tensor
    scale: float = 1.0


class ControlledNetwork:
    """A video network with a SparseCtrl network, called like the video network alone.

    Residuals are computed once for each timestep and text: as the network does not read the noisy latents, all calls of
    a step at one level have the same.

    Args:
        video: an OptimisedNetwork of UNetMotionModel.
        control: an OptimisedNetwork of SparseControlNetModel.
        first_frame: the frame to keep.

    Attributes:
        levels_kept: for how many timesteps residuals are kept; fewer need less memory and more calls.

    Raises:
        IncompatibleInputs: the latents are not those of one frame of the model.
    """

    native_cfg = True

    def __init__(self, video: Any, control: Any, first_frame: FirstFrame) -> None:  # networks: see OptimisedNetwork
        shape, channels = tuple(first_frame.latents.shape), control.config.conditioning_channels
        if len(shape) != 5 or shape[:3] != (1, channels, 1):
            raise IncompatibleInputs(f"first_frame.latents {shape} must be (1, {channels}, 1, h, w): of one frame")
        self.video, self.control, self.first_frame = video, control, first_frame
        self.levels_kept = LEVELS_KEPT
        self._conditions = dict[tuple[int, ...], dict[str, Tensor]]()
        # Holding the texts reserves their ids.
        self._residuals: OrderedDict[tuple[object, ...], tuple[Texts, Residuals]] = OrderedDict()

    @property
    def config(self) -> Any:
        return self.video.config

    def __call__(self, x: Tensor, timestep: int, *, encoder_hidden_states: Texts, **network_args: Any) -> Any:
        down, middle = self._residuals_of(x, timestep, encoder_hidden_states, network_args)
        return self.video(
            x,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **network_args,
        )

    def _residuals_of(self, x: Tensor, timestep: int, texts: Texts, network_args: Mapping[str, Any]) -> Residuals:
        key = (timestep, tuple(x.shape), *map(id, texts))
        if key in self._residuals:
            self._residuals.move_to_end(key)
            return self._residuals[key][1]
        while len(self._residuals) >= max(self.levels_kept, 1):  # before the call, which needs the memory
            self._residuals.popitem(last=False)
        found: Residuals = self.control(
            x,
            timestep,
            encoder_hidden_states=texts,
            conditioning_scale=self.first_frame.scale,
            return_dict=False,
            **self._condition(x),
            **network_args,
        )
        if self.levels_kept:
            self._residuals[key] = texts, found
        return found

    def _condition(self, x: Tensor) -> dict[str, Tensor]:
        """The given frame and the mask, for a clip (B, C, F, h, w)."""
        _, _, frames, height, width = x.shape
        given = self.first_frame.latents
        if tuple(given.shape[-2:]) != (height, width):
            raise IncompatibleInputs(
                f"first_frame.latents {tuple(given.shape)} are of another size than the clip's {tuple(x.shape)}"
            )
        shape = (frames, height, width)
        if shape not in self._conditions:
            condition = torch.zeros(1, given.shape[1], *shape, dtype=x.dtype, device=x.device)
            mask = torch.zeros(1, 1, *shape, dtype=x.dtype, device=x.device)
            condition[:, :, :1] = given
            mask[:, :, 0] = 1
            self._conditions[shape] = {"controlnet_cond": condition, "conditioning_mask": mask}
        return self._conditions[shape]


def controlled(video: Any, control: Any | None, first_frame: FirstFrame | None) -> Any:
    """The video network, around which there is a SparseCtrl network if a frame is to be kept.

    Raises IncompatibleInputs if there is none, or the frame does not fit.
    """
    if first_frame is None:
        return video
    if control is None:
        raise IncompatibleInputs("first_frame: the model has no component sparse_control; leave it out")
    return ControlledNetwork(video, control, first_frame)
