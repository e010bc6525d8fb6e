"""The number of frames of a clip, from `seconds`, `num_frames` and `fps` of its request."""

from __future__ import annotations

from service.catalog.bounds import Range
from service.errors import InvalidParameter
from service.jobs.request import VideoRequest


def resolve_num_frames(request: VideoRequest, num_frames: Range, rates: Range, fps: int) -> int:
    """`seconds` alone sets the number of frames; together with `num_frames` it must agree.

    Args:
        num_frames, rates: bounds of the model's frames and frame rates.
        fps: the frame rate of this clip.

    Raises:
        InvalidParameter: the model cannot make a clip of this length.
    """
    wanted = None if request.seconds is None else request.seconds * fps
    if wanted is None or request.num_frames is not None:
        frames = int(num_frames.resolve("num_frames", request.num_frames))
        if wanted is not None and not _same(wanted, frames):
            message = f"seconds={request.seconds:g} is not num_frames={frames} at fps={fps}; leave one out."
            raise InvalidParameter("seconds", message)
        return frames
    if not num_frames.min <= round(wanted) <= num_frames.max or not _same(wanted, round(wanted)):
        shortest, longest = (f"{n / fps:g}" for n in (num_frames.min, num_frames.max))
        possible = f"'{shortest}'" if shortest == longest else f"'{shortest}' to '{longest}', in whole frames"
        message = f"Invalid value for 'seconds': '{request.seconds:g}'. Supported at {fps} fps: {possible}."
        message += _fps_hint(request.seconds or 0, num_frames, rates, fps)
        raise InvalidParameter("seconds", message)
    return round(wanted)


def _fps_hint(seconds: float, num_frames: Range, rates: Range, fps: int) -> str:
    """The frame rate nearest to `fps` at which the model can make exactly this duration."""
    possible = range(int(rates.min), int(rates.max) + 1)
    for rate in sorted(possible, key=lambda rate: abs(rate - fps)):
        frames = round(seconds * rate)
        if num_frames.min <= frames <= num_frames.max and _same(seconds * rate, frames):
            return f" Send fps={rate} as well to get it."
    return ""


def _same(frames: float, whole: int) -> bool:
    return abs(frames - whole) < 0.01  # clients send `seconds` with six digits
