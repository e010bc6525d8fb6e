"""The reference of a generation: what the request asks for, checked against the model and the sampler."""

from __future__ import annotations

from typing import Literal

from service.catalog.family_components import COGVIDEOX, WAN, Family
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.reference import Reference, ReferenceFile, ReferenceUse, first_step, smallest_strength
from service.jobs.request import VideoRequest

FIELD = "input_reference"
PICTURE = "image/png"


KeepsBy = Literal["sparse_control", "channels", "tokens"]
# Why a model cannot keep a first frame, and which could.
LACKS = {
    WAN: ("is a text-to-video model, without image_conditioning in its entry", "an image-to-video model"),
    COGVIDEOX: ("is of family cogvideox, whose text-to-video models alone are supported", "a model that keeps one"),
}
NO_CONTROL = "has no SparseCtrl network (sparse_control)", "a model that has one"


def add_reference(
    generation: Generation, request: VideoRequest, *, keeps: KeepsBy | None, family: Family
) -> Generation:
    """Return the generation with the request's reference, or unchanged if it has none.

    Args:
        keeps: how the model can keep a first frame: with a SparseCtrl network, or, as image-to-video models do, in
            further channels of its input, which then always need a picture, or in its first latent frame.
        family: of the model.

    Raises:
        InvalidParameter: the model or the sampler cannot use the reference so; the message says what would work.
    """
    file = request.input_reference
    if file is None:
        _refuse_settings_without_file(request)
        if keeps == "channels":
            message = f"Model '{generation.model}' makes videos of a picture; send one as {FIELD}."
            raise InvalidParameter(FIELD, message, "missing_required_parameter")
        return generation
    if generation.sampler.name == "official":
        message = f"Sampler 'official' takes no {FIELD}: it runs the released code, which begins with noise"
        raise InvalidParameter(FIELD, f"{message}; use iv-mixed or ddim.")
    can_keep = keeps is not None and not generation.sampler.is_image_alone
    is_kept = can_keep and (file.media_type == PICTURE or keeps == "channels")
    use = request.reference_use or ("first_frame" if is_kept else "start")
    if use == "first_frame":
        _check_first_frame(request, generation, keeps, family)
    elif keeps == "channels":
        message = f"reference_use=start: model '{generation.model}' always keeps the first frame; use first_frame"
        raise InvalidParameter("reference_use", f"{message}.")
    else:
        _check_start(request, file, generation)
    given = {name: getattr(request, name) for name in ("strength", "conditioning_scale")}
    reference = Reference(
        **file.model_dump(), use=use, **{name: value for name, value in given.items() if value is not None}
    )
    return generation.model_copy(update={"reference": reference})


def _refuse_settings_without_file(request: VideoRequest) -> None:
    for name in ("strength", "reference_use", "conditioning_scale"):
        if getattr(request, name) is not None:
            message = f"'{name}' is given without {FIELD}; send a picture or a clip as well, or leave it out."
            raise InvalidParameter(name, message)


def _check_first_frame(request: VideoRequest, generation: Generation, keeps: KeepsBy | None, family: Family) -> None:
    """Of a clip, the first frame is kept, so it may be of any length."""
    if keeps is None:
        why, other = LACKS.get(family, NO_CONTROL)
        message = f"reference_use=first_frame: model '{generation.model}' {why}; use reference_use=start, or {other}."
        raise InvalidParameter("reference_use", message)
    if generation.sampler.is_image_alone:
        message = "reference_use=first_frame: sampler 'ddim' with network image does not call the video model"
        raise InvalidParameter("reference_use", f"{message}; use reference_use=start, or network video.")
    _refuse(request, "strength", of="start")
    if keeps != "sparse_control" and request.conditioning_scale not in (None, 1):
        message = f"conditioning_scale: model '{generation.model}' keeps the first frame as it is; leave it out."
        raise InvalidParameter("conditioning_scale", message)


def _check_start(request: VideoRequest, file: ReferenceFile, generation: Generation) -> None:
    _refuse(request, "conditioning_scale", of="first_frame")
    if generation.sampler.name == "freeinit":
        message = f"Sampler 'freeinit' cannot begin at {FIELD}: it makes new start noise for every run"
        raise InvalidParameter(FIELD, f"{message}; use iv-mixed or ddim.")
    frames, steps = generation.num_frames, generation.num_inference_steps
    if file.media_type == "video/mp4" and file.num_frames < frames:
        message = f"num_frames={frames} is more than the {file.num_frames} of the clip in {FIELD}; ask for fewer."
        raise InvalidParameter("num_frames", message)
    strength = Reference.model_fields["strength"].default if request.strength is None else request.strength
    if first_step(steps, strength) == steps:
        least = smallest_strength(steps)
        message = f"strength={strength:g} of {steps} steps runs none; {least:g} is the least for one step."
        raise InvalidParameter("strength", message)


def _refuse(request: VideoRequest, name: str, *, of: ReferenceUse) -> None:
    if getattr(request, name) is not None:
        raise InvalidParameter(name, f"'{name}' belongs to reference_use={of}; leave it out, or use {of}.")
