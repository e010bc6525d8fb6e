"""The number of frames of a clip, from `seconds`, `num_frames` and `fps` of its request."""

from __future__ import annotations

from service.catalog.bounds import Range
from service.errors import InvalidParameter
from service.jobs.request import VideoRequest


def resolve_num_frames(request: VideoRequest, num_frames: Range, rates: Range, fps: int, stride: int = 1) -> int:
    """`seconds` alone sets the number of frames; together with `num_frames` it must agree.

    Args:
        num_frames, rates: bounds of the model's frames and frame rates.
        fps: the frame rate of this clip.
        stride: above 1, clips have a multiple of it and one frame more; `seconds` then counts without that frame, as
            the authors of such models do: 81 frames at 16 per second are 5 seconds.

    Raises:
        InvalidParameter: the model cannot make a clip of this length.
    """
    wanted = None if request.seconds is None else _frames(request.seconds, fps, stride)
    if wanted is None or request.num_frames is not None:
        frames = int(num_frames.resolve("num_frames", request.num_frames))
        check_stride("num_frames", frames, num_frames, stride)
        if wanted is not None and not _same(wanted, frames):
            message = f"seconds={request.seconds:g} is not num_frames={frames} at fps={fps}; leave one out."
            raise InvalidParameter("seconds", message)
        return frames
    if not num_frames.min <= round(wanted) <= num_frames.max or not _same(wanted, round(wanted)):
        shortest, longest = (f"{(n - (stride > 1)) / fps:g}" for n in (num_frames.min, num_frames.max))
        possible = f"'{shortest}'" if shortest == longest else f"'{shortest}' to '{longest}', in whole frames"
        message = f"Invalid value for 'seconds': '{request.seconds:g}'. Supported at {fps} fps: {possible}."
        message += _fps_hint(request.seconds or 0, num_frames, rates, fps, stride)
        raise InvalidParameter("seconds", message)
    check_stride("seconds", round(wanted), num_frames, stride)
    return round(wanted)


def _frames(seconds: float, fps: int, stride: int) -> float:
    frames = seconds * fps
    return frames + 1 if stride > 1 and _same(frames, stride * round(frames / stride)) else frames


def check_stride(param: str, frames: int, num_frames: Range, stride: int) -> None:
    """Raises InvalidParameter naming the two nearest lengths if the model has none of so many frames."""
    if (frames - 1) % stride == 0:
        return
    below = frames - (frames - 1) % stride
    near = [str(n) for n in (below, below + stride) if num_frames.min <= n <= num_frames.max]
    shown = f"num_frames={frames}" if param == "num_frames" else f"seconds is {frames} frames"
    message = f"{shown}: this model makes clips of {stride}k + 1 frames; the nearest are {' and '.join(near)}."
    raise InvalidParameter(param, message)


def _fps_hint(seconds: float, num_frames: Range, rates: Range, fps: int, stride: int) -> str:
    """The frame rate nearest to `fps` at which the model can make exactly this duration."""
    possible = range(int(rates.min), int(rates.max) + 1)
    for rate in sorted(possible, key=lambda rate: abs(rate - fps)):
        wanted = _frames(seconds, rate, stride)
        frames = round(wanted)
        is_possible = num_frames.min <= frames <= num_frames.max and (frames - 1) % stride == 0
        if is_possible and _same(wanted, frames):
            return f" Send fps={rate} as well to get it."
    return ""


def _same(frames: float, whole: int) -> bool:
    return abs(frames - whole) < 0.01  # clients send `seconds` with six digits
