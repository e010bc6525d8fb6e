"""The picture or clip that a video starts from."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from service.frozen_model import FrozenModel

ReferenceUse = Literal["start", "first_frame"]
Strength = Annotated[float, Field(gt=0, le=1)]
ConditioningScale = Annotated[float, Field(ge=0, le=2)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MediaType = Literal["image/png", "video/mp4"]
Pixels = Annotated[int, Field(ge=1, le=2**31)]


def first_step(steps: int, strength: float) -> int:
    """Return how many of the steps are left out at this strength, as in diffusers' video-to-video pipelines."""
    return steps - min(int(steps * strength), steps)


def smallest_strength(steps: int) -> float:
    """Return the smallest strength of four digits at which one of the steps runs."""
    units = math.ceil(10_000 / steps)
    while int(steps * (units / 10_000)) == 0:  # rounding can take the last step away
        units += 1
    return units / 10_000


class ReferenceFile(FrozenModel):
    """The stored file of a reference: what the server made of an upload, or the MP4 of another video."""

    sha256: Sha256  #: of the file, in hex
    media_type: MediaType  #: one picture, or a clip
    num_frames: Pixels = 1  #: of a clip; 1 for a picture
    width: Pixels  #: in pixels
    height: Pixels  #: in pixels


class Reference(FrozenModel):
    """What a generation takes from its reference. The file itself is stored with the job."""

    sha256: Sha256  #: of the stored file, in hex
    media_type: MediaType  #: of the stored file: one picture, or a clip
    num_frames: Pixels | None = None  #: of the stored file
    width: Pixels | None = None  #: of the stored file
    height: Pixels | None = None  #: of the stored file
    use: ReferenceUse = "start"
    #: "start": the run begins at noised latents of the reference; "first_frame": a SparseCtrl network keeps it
    strength: Strength = 0.8  #: of "start": the share of the steps that run; 1 starts from noise alone
    conditioning_scale: ConditioningScale = 1.0  #: of "first_frame": how strongly the network's residuals count

    def first_step(self, steps: int) -> int:
        """Return how many of the run's steps are left out."""
        return first_step(steps, self.strength) if self.use == "start" else 0

    @property
    def file(self) -> ReferenceFile:
        """The stored file."""
        size = {"num_frames": self.num_frames or 1, "width": self.width or 1, "height": self.height or 1}
        return ReferenceFile(sha256=self.sha256, media_type=self.media_type, **size)
