"""Windows over the frames of a clip that is longer than the motion modules take (FreeNoise, arXiv:2310.15169)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from service.frozen_model import FrozenModel

WeightingScheme = Literal["flat", "pyramid", "delayed_reverse_sawtooth"]
NoiseType = Literal["shuffle_context", "repeat_context", "random"]


class ContextWindows(FrozenModel):
    """Names and defaults are those of diffusers' `enable_free_noise`."""

    length: int = Field(default=16, ge=1, le=100_000, description="frames that the motion modules see at once")
    stride: int = Field(default=4, ge=1, description="frames from the begin of one window to that of the next")
    weighting_scheme: WeightingScheme = Field(default="pyramid", description="weights of the frames of a window")
    noise_type: NoiseType = Field(default="shuffle_context", description="how start noise beyond `length` is made")

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.stride > self.length:
            raise ValueError(f"stride={self.stride} is above length={self.length}: frames between windows have none")
        return self

    def starts(self, num_frames: int) -> range | list[int]:
        """First frame of each window of a clip of at least `length` frames; the last window ends with the clip."""
        last = num_frames - self.length
        regular = range(0, last + 1, self.stride)
        return regular if last % self.stride == 0 else [*regular, last]
