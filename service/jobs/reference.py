"""The picture or clip that a video starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.frozen_model import FrozenModel

ReferenceUse = Literal["start", "first_frame"]
Strength = Annotated[float, Field(gt=0, le=1)]
ConditioningScale = Annotated[float, Field(ge=0, le=2)]


class Reference(FrozenModel):
    """What a generation takes from its reference. The file itself is stored with the job."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  #: of the stored file, in hex
    media_type: Literal["image/png", "video/mp4"]  #: of the stored file: one picture, or a clip
    use: ReferenceUse = "start"
    #: "start": the run begins at noised latents of the reference; "first_frame": a SparseCtrl network keeps it
    strength: Strength = 0.8  #: of "start": the share of the steps that run; 1 starts from noise alone
    conditioning_scale: ConditioningScale = 1.0  #: of "first_frame": how strongly the network's residuals count


def first_step(num_inference_steps: int, strength: float) -> int:
    """The step, from 0, at which a run begins that starts from its reference: diffusers' rule for image and video to
    video. `num_inference_steps` itself if `strength` is too low for a single step."""
    return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)
