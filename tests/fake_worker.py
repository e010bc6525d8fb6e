"""`python -m tests.fake_worker`: a real worker process, parent and child, whose engine only sleeps.

What it is to do wrong stands in the prompt, as name@step: `die`, `hang`, `fail` (the device is lost), `late` (waits
until the file named in FAKE_GATE exists). FAKE_STEP_S is the time of a step. FAKE_WINDOW names a file that is made when
a job has been taken and not started; the worker stays there until it is told to stop.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from service.jobs import Generation, Phase
from service.settings import Settings, load_settings
from service.wiring import open_services
from worker.__main__ import work
from worker.child import serve
from worker.messages import Failed
from worker.resident import Resident
from worker.rq_worker import ResidentWorker


class DeviceLost(Exception):
    pass


@dataclass
class State:
    step: int

    def write(self, path: Path) -> None:
        path.write_text(str(self.step))


@dataclass
class Clip:
    frames: Any
    timings: dict[str, float] = field(default_factory=lambda: {Phase.SAMPLING: 1.0})


class FakeEngine:
    def __init__(self) -> None:
        self.is_broken = False

    def generate(
        self,
        generation: Generation,
        on_progress: Callable[[Phase, int, int], None],
        *,
        on_step: Callable[[State], None],
        resume: Path | None,
    ) -> Clip:
        total, faults = generation.num_inference_steps, dict(re.findall(r"(\w+)@(\d+)", generation.prompt))
        start = int(resume.read_text()) if resume else 0
        print(f"from step {start}", file=sys.stderr, flush=True)
        on_progress(Phase.ENCODING, 0, total)
        for step in range(start, total):
            self._misbehave({name for name, at in faults.items() if int(at) == step})
            time.sleep(float(os.environ.get("FAKE_STEP_S", "0.02")))
            on_step(State(step + 1))
            on_progress(Phase.SAMPLING, step + 1, total)
        on_progress(Phase.DECODING, total, total)
        return Clip(np.full((2, 16, 16, 3), generation.seed % 256, np.uint8))

    def _misbehave(self, faults: set[str]) -> None:
        if "die" in faults:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in faults:
            time.sleep(3600)
        if "late" in faults:
            while not Path(os.environ["FAKE_GATE"]).exists():
                time.sleep(0.02)
        self.is_broken |= "fail" in faults
        if self.is_broken:  # as a CUDA context after its first fault: for ever
            raise DeviceLost

    def failure(self, e: Exception) -> Failed:
        logging.getLogger("fake").error("failed", exc_info=e)
        return Failed("internal_error", "It broke.", can_retry=True, is_broken=isinstance(e, DeviceLost))

    def peak_memory_mb(self) -> float:
        return 1.0


def enter(connection: Connection, parent: int, settings: Settings, model: str) -> None:
    serve(connection, parent, settings, FakeEngine)


def stay_in_window(flag: Path) -> None:
    """Make the moment between taking a job and starting it long enough to be hit."""
    execute = ResidentWorker.execute_job

    def late(self: ResidentWorker, *args: Any) -> None:
        flag.touch()
        while not self.is_draining:
            time.sleep(0.02)
        execute(self, *args)

    ResidentWorker.execute_job = late  # type: ignore[method-assign]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("rq").setLevel(logging.WARNING)
    if window := os.environ.get("FAKE_WINDOW"):
        stay_in_window(Path(window))
    loaded = load_settings()
    sys.exit(work(open_services(loaded), "demo", Resident(loaded, "demo", enter)))
