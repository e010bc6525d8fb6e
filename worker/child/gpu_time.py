"""How long the networks have worked for a job, for the usage of its owner."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.jobs.model import Job, Phase


class GpuTime:
    """Counts encoding and sampling of one execution. Steps that an earlier execution has reported are not counted
    again, nor is the encoding before them, so that a job that is resumed costs what an undisturbed one does. Decoding
    is counted when the job is completed. What is before `begin`, such as waiting for the storage, does not count.

    Args:
        decoded_s: seconds that this process has decoded clips. The previous job's clip is decoded while this one is
            encoded and sampled; that time is the previous job's, and is not counted twice.
    """

    def __init__(self, job: Job, decoded_s: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._known_step, self._is_first = job.step, job.gpu_ms == 0
        self._decoded_s = decoded_s
        self._last: float | None = None

    def begin(self) -> None:
        """Count from now."""
        self._last = self._now()

    def note(self, phase: Phase, step: int) -> None:
        """A phase has begun, or a step has ended."""
        now = self._now()
        is_new = step > self._known_step or (step == 0 and self._is_first)
        if self._last is None:
            return
        if phase in (Phase.ENCODING, Phase.SAMPLING) and is_new:
            self.seconds += now - self._last
        self._last = now

    def _now(self) -> float:
        """A clock that stands still while a clip is decoded."""
        return time.perf_counter() - self._decoded_s()
