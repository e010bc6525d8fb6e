"""The engine of tests/fake_worker.py with clips of the requested size: a square of the seed's colour moves right.

While the file named by FAKE_HOLD exists, jobs that sample stay at their step; they can be cancelled there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from service.jobs.model import Generation, Phase
from tests.fake_worker import Clip, FakeEngine


class DrawingEngine(FakeEngine):
    def sample(
        self, generation: Generation, on_progress: Callable[[Phase, int, int], None], **others: Any
    ) -> Generation:
        hold = Path(os.environ.get("FAKE_HOLD", "/nowhere"))

        def hold_and_report(phase: Phase, step: int, total: int) -> None:
            on_progress(phase, step, total)
            while phase is Phase.SAMPLING and step < total and hold.exists():
                time.sleep(0.05)
                on_progress(phase, step, total)  # raises if the parent asked for a stop

        return super().sample(generation, hold_and_report, **others)

    def decode(self, sampled: Generation, on_progress: Callable[[Phase, int, int], None]) -> Clip:
        super().decode(sampled, on_progress)
        return Clip(draw(sampled), {Phase.ENCODING: 0.1, Phase.SAMPLING: 1.0, Phase.DECODING: 0.2})


def draw(generation: Generation) -> np.ndarray:
    height, width, count = generation.height, generation.width, generation.num_frames
    frames = np.full((count, height, width, 3), (25, 128, 132), np.uint8)
    colour = [(generation.seed * factor + 90) % 256 for factor in (53, 101, 29)]
    side = height // 4
    for i, frame in enumerate(frames):
        left = (width - side) * i // max(1, count - 1)
        frame[(height - side) // 2 : (height + side) // 2, left : left + side] = colour
    return frames
