"""Previews of a video that is being sampled: when one is made, and that they cost almost nothing."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

log = logging.getLogger("ivmix.child")

MOST_BYTES = 24_000
LONGEST_SIDE = 192  # pixels; smaller ones stay as they are, for browsers enlarge as well
SHARE = 0.02  # of the sampling time, at most

# (frames, quality) until the file is small enough; noise needs the last.
ATTEMPTS = ((4, 60), (2, 50), (1, 40))


class Preview(Protocol):
    """A preview in the making."""

    @property
    def is_ready(self) -> bool:
        """Whether `encode` waits for nothing."""
        ...

    def encode(self) -> bytes | None:
        """A WebP file; None if there is nothing to show."""
        ...


MakePreview = Callable[[], Preview]
Frames = NDArray[np.uint8]  # (n, h, w, 3)


class Previews:
    """The previews of one job. A failure ends them, and never the job.

    Args:
        every_s: seconds between two previews; 0: none. The first one comes as soon as it is affordable.
        cost_s: what the first one is expected to take.
        clock: returns seconds.

    Attributes:
        made: finished previews.
        spent_s: seconds that they took from the sampling.
    """

    def __init__(self, every_s: float, cost_s: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._every_s, self._cost_s, self._clock = every_s, cost_s, clock
        self._is_off = every_s <= 0
        self._began: float | None = None
        self._last: float | None = None
        self.spent_s, self.made = 0.0, 0
        self._pending: Preview | None = None
        self._latest: bytes | None = None

    def begin(self) -> None:
        """Sampling begins, after the texts are encoded and a checkpoint is loaded. Later calls change nothing."""
        if self._began is None:
            self._began = self._clock()

    def offer(self, make: MakePreview) -> None:
        """Called after every step. Begins a preview if one is due, and finishes it in this call or a later one."""
        if self._is_off:
            return
        now = self._clock()
        try:
            if self._pending is None and self._is_due(now):
                self._pending, self._last = make(), now
            if self._pending is not None and self._pending.is_ready:
                self._latest, self._pending = self._pending.encode(), None
                self.made += 1
        except Exception:
            self._is_off = True
            log.warning("this video has no more previews", exc_info=True)
        self.spent_s += self._clock() - now

    def take(self) -> bytes | None:
        """The newest preview, once."""
        latest, self._latest = self._latest, None
        return latest

    def _is_due(self, now: float) -> bool:
        cost_s = self.spent_s / self.made if self.made else self._cost_s
        sampling_s = 0.0 if self._began is None else now - self._began
        is_time = self._last is None or now - self._last >= self._every_s
        return is_time and self.spent_s + cost_s <= SHARE * sampling_s


def webp(frames: Frames, frame_ms: float) -> bytes | None:
    """Frames (n, h, w, 3) as an animation of at most MOST_BYTES, or as a picture if they are too many or too noisy for
    one. None if even that is too large."""
    for count, quality in ATTEMPTS:
        stride = -(-len(frames) // count)
        kept = frames[::stride] if count > 1 else frames[len(frames) // 2 :][:1]
        data = _webp([_small(frame) for frame in kept], frame_ms * stride, quality)
        if len(data) <= MOST_BYTES:
            return data
    return None


def _webp(pictures: list[Image.Image], frame_ms: float, quality: int) -> bytes:
    file = io.BytesIO()
    first, *others = pictures
    animation = {"save_all": True, "append_images": others, "duration": round(frame_ms), "loop": 0} if others else {}
    first.save(file, "WEBP", quality=quality, method=0, **animation)  # method 0: a third of the default's time
    return file.getvalue()


def _small(frame: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(frame)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture
