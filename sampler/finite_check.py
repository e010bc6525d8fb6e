"""Whether the latents are still numbers, found out without making the device wait. Knows moves by number only."""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Steps that may be under way on a GPU before the host waits for the oldest: so much later than it happened is NaN
# noticed, progress told and a cancel obeyed, while the device always has the next steps in its queue.
AHEAD = 2


@dataclass(frozen=True)
class Trouble:
    """`number` is of the move of step `index` that first left NaN or infinity."""

    index: int
    number: int


class _Asked(NamedTuple):
    step: int
    after: Sequence[tuple[int, Tensor]]  # latents after each move, by its number
    flag: int  # its place in host memory
    event: torch.cuda.Event | None  # None: the flag can be read now


class FiniteCheck:
    """Told the latents after each move of a step; says, on a GPU up to AHEAD steps later, where they went wrong.

    The flag of a step is the sum of its last latents: one kernel, and NaN or infinity if any of them is (finite ones
    are too small for their sum to overflow). It is copied to the host beside the work and read there straight from
    memory: `.item()` would wait for all that was queued.
    """

    def __init__(self, like: Tensor, steps: int) -> None:
        self._on_gpu = like.device.type == "cuda"
        flags = torch.zeros(steps, device=like.device)
        self._host = torch.zeros(steps, pin_memory=True) if self._on_gpu else flags.cpu()
        self._flags, self._copies = flags.unbind(), None if self._host is flags else self._host.unbind()
        self._values = (ctypes.c_float * steps).from_address(self._host.data_ptr())
        self._asked: deque[_Asked] = deque()
        self._count = 0

    def tell(self, index: int, after: Sequence[tuple[int, Tensor]], *, is_last: bool) -> Trouble | None:
        """After the last step everything is waited for, so that nobody takes what is broken for done."""
        if after:
            self._asked.append(self._ask(index, after))
        while self._asked:
            first = self._asked[0]
            if first.event is not None and not first.event.query():
                if len(self._asked) <= AHEAD and not is_last:
                    return None
                first.event.synchronize()
            self._asked.popleft()
            if not math.isfinite(self._values[first.flag]):
                number = next(number for number, x in first.after if not torch.isfinite(x).all())
                return Trouble(first.step, number)
        return None

    def _ask(self, index: int, after: Sequence[tuple[int, Tensor]]) -> _Asked:
        flag = self._count
        self._count += 1
        torch.sum(after[-1][1], dim=None, out=self._flags[flag])  # what is not finite stays so in later moves
        event = None
        if self._copies is not None:
            self._copies[flag].copy_(self._flags[flag], non_blocking=self._on_gpu)
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record()
        return _Asked(index, after, flag, event)
