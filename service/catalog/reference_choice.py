"""The reference of a generation: what the request asks for, checked against the model and the sampler."""

from __future__ import annotations

from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.reference import Reference, ReferenceFile, ReferenceUse, first_step, smallest_strength
from service.jobs.request import VideoRequest

FIELD = "input_reference"
PICTURE = "image/png"


def add_reference(generation: Generation, request: VideoRequest, *, has_sparse_control: bool) -> Generation:
    """Return the generation with the request's reference, or unchanged if it has none.

    Args:
        has_sparse_control: whether the model has a SparseCtrl network.

    Raises:
        InvalidParameter: the model or the sampler cannot use the reference so; the message says what would work.
    """
    file = request.input_reference
    if file is None:
        _refuse_settings_without_file(request)
        return generation
    if generation.sampler.name == "official":
        message = f"Sampler 'official' takes no {FIELD}: it runs the released code, which begins with noise"
        raise InvalidParameter(FIELD, f"{message}; use iv-mixed or ddim.")
    can_keep = has_sparse_control and not generation.sampler.is_image_alone
    use = request.reference_use or ("first_frame" if can_keep and file.media_type == PICTURE else "start")
    if use == "first_frame":
        _check_first_frame(request, generation, has_sparse_control=has_sparse_control)
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


def _check_first_frame(request: VideoRequest, generation: Generation, *, has_sparse_control: bool) -> None:
    """Of a clip, the first frame is kept, so it may be of any length."""
    if not has_sparse_control:
        message = f"reference_use=first_frame: model '{generation.model}' has no SparseCtrl network (sparse_control)"
        raise InvalidParameter("reference_use", f"{message}; use reference_use=start, or a model that has one.")
    if generation.sampler.is_image_alone:
        message = "reference_use=first_frame: sampler 'ddim' with network image does not call the video model"
        raise InvalidParameter("reference_use", f"{message}; use reference_use=start, or network video.")
    _refuse(request, "strength", of="start")


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
