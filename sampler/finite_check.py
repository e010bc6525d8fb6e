"""NaN detection: finds the first move that left NaN or infinity in the latents, without making the host wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

# Steps that may be queued on a GPU before the host waits for the oldest. NaN detection, progress and cancellation lag
# by at most this many steps; the device always has its next work queued.
MAX_STEPS_AHEAD = 2


class NonFiniteMove(NamedTuple):
    """`step` counts from 0; `number` counts the moves of that step from 1."""

    step: int
    number: int


class _Pending(NamedTuple):
    step: int
    after: Sequence[tuple[int, Tensor]]  # (number of the move, latents after it)
    total: Tensor  # on the host; valid once `event` has completed
    event: torch.cuda.Event | None  # None on a CPU


class FiniteCheck:
    """Checks the latents of each step; on a GPU the result arrives up to MAX_STEPS_AHEAD steps later.

    A step is checked by the sum of its last latents: one kernel, and NaN or infinity if any element is. (Finite
    latents are too small for their sum to overflow.) The sum is copied to pinned host memory asynchronously.
    """

    def __init__(self, like: Tensor, steps: int) -> None:
        self._on_gpu = like.device.type == "cuda"
        self._totals = iter(torch.zeros(steps, pin_memory=self._on_gpu).unbind())
        self._pending: deque[_Pending] = deque()

    def check(self, step: int, after: Sequence[tuple[int, Tensor]], *, is_last: bool) -> NonFiniteMove | None:
        """Queue the check of `step`, then report the first failed check that has completed.

        Args:
            after: the number of each move and the latents after it; empty if the step changed nothing.
            is_last: wait for all pending checks, so that a broken run is never reported as done.
        """
        if after:
            self._pending.append(self._start(step, after))
        while self._pending:
            oldest = self._pending[0]
            if oldest.event is not None and not oldest.event.query():
                if len(self._pending) <= MAX_STEPS_AHEAD and not is_last:
                    return None
                oldest.event.synchronize()
            self._pending.popleft()
            total = cast("float", oldest.total.tolist())  # pyright: ignore[reportUnknownMemberType]
            if not math.isfinite(total):
                return NonFiniteMove(oldest.step, next(n for n, x in oldest.after if not torch.isfinite(x).all()))
        return None

    def _start(self, step: int, after: Sequence[tuple[int, Tensor]]) -> _Pending:
        _, latents = after[-1]  # NaN and infinity survive all later moves
        total = next(self._totals)
        total.copy_(latents.sum(), non_blocking=self._on_gpu)
        event = None
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record()
        return _Pending(step, after, total, event)
