"""`python -m tests.fake_worker` runs a real worker, parent and child, with an engine that only sleeps.

It makes previews every IVMIX_PREVIEW_SECONDS. The prompt names faults as fault@step: `die`, `hang`, `fail` (the device
is lost), `late` (waits until the file named by FAKE_GATE exists). fault@decode happens after the last step. FAKE_STEP_S
sets the duration of a step. While the file named by FAKE_LOAD exists, loading fails with its content as the reason.
If FAKE_WINDOW is set, the worker creates the file it names after dequeuing a job and waits there, before starting it,
until it is stopped. FAKE_CLOCK_S: see tests/skewed_clock.py.
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import ConfigurationError
from service.jobs.model import Generation, Phase
from service.process.heartbeat_file import HeartbeatFile
from service.process.startup import start_process
from service.settings import Settings
from service.storage import sha256_of
from service.wiring import open_services
from tests.skewed_clock import skew_clock
from worker.__main__ import work
from worker.child.main import start
from worker.child.previews import MakePreview, webp
from worker.messages import Failed
from worker.parent.child_process import ChildProcess
from worker.parent.metrics import WorkerMetrics
from worker.parent.rq_worker import GenerationWorker

OnPreview = Callable[[MakePreview], None]


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


@dataclass
class FakePreview:
    """A square that becomes lighter from step to step."""

    step: int
    total: int
    is_ready: bool = True

    def encode(self) -> bytes | None:
        return webp(np.full((1, 48, 48, 3), 255 * self.step // self.total, np.uint8), 1000)


class FakeEngine:
    device_name = "no device"
    preview_cost_s = 0.0
    decoded_s = 0.0

    def __init__(self) -> None:
        self.is_broken = False
        FakePreview(0, 1).encode()  # the first picture loads the codec, which would use up the previews' time

    def sample(
        self,
        generation: Generation,
        on_progress: Callable[[Phase, int, int], None],
        *,
        on_step: Callable[[State], None],
        on_preview: OnPreview,
        resume: Path | None,
        reference: Path | None = None,
    ) -> Generation:
        total = generation.total_steps
        if generation.reference is not None:
            assert reference is not None
            assert sha256_of(reference) == generation.reference.sha256
        start = int(resume.read_text()) if resume else 0
        print(f"from step {start}", file=sys.stderr, flush=True)
        on_progress(Phase.ENCODING, 0, total)
        for step in range(start, total):
            self._misbehave(generation, str(step))
            time.sleep(float(os.environ.get("FAKE_STEP_S", "0.02")))
            on_step(State(step + 1))
            on_preview(partial(FakePreview, step, total))
            on_progress(Phase.SAMPLING, step + 1, total)
        return generation

    def decode(self, sampled: Generation, on_progress: Callable[[Phase, int, int], None]) -> Clip:
        on_progress(Phase.DECODING, sampled.total_steps, sampled.total_steps)
        self._misbehave(sampled, "decode")
        return Clip(np.full((2, 64, 64, 3), sampled.seed % 256, np.uint8))

    def _misbehave(self, generation: Generation, now: str) -> None:
        faults = {name for name, at in re.findall(r"(\w+)@(\w+)", generation.prompt) if at == now}
        if "die" in faults:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in faults:
            time.sleep(3600)
        if "late" in faults:
            while not Path(os.environ["FAKE_GATE"]).exists():
                time.sleep(0.02)
        self.is_broken |= "fail" in faults
        if self.is_broken:  # like a CUDA context after its first fault, until the process ends
            raise DeviceLost

    def failed_message(self, e: Exception) -> Failed:
        logging.getLogger("fake").error("failed", exc_info=e)
        return Failed("internal_error", "It broke.", can_retry=True, is_broken=isinstance(e, DeviceLost))

    def peak_memory_mb(self) -> float:
        return 1.0

    def warm_up(self, _generation: Generation) -> None: ...


def load() -> FakeEngine:
    file = Path(os.environ.get("FAKE_LOAD", os.devnull))
    if reason := file.read_text() if file.exists() else "":
        raise ConfigurationError(reason)
    return FakeEngine()


def enter(control: Connection, settings: Settings, model: str) -> None:
    skew_clock()
    start(control, settings, load)  # type: ignore[arg-type]


def stay_in_window(flag: Path) -> None:
    """Extend the moment between dequeuing a job and starting it until the worker is stopped."""
    execute = GenerationWorker.execute_job

    def late(self: GenerationWorker, *args: Any) -> None:
        flag.touch()
        while not self.is_draining:
            time.sleep(0.02)
        execute(self, *args)

    GenerationWorker.execute_job = late  # type: ignore[method-assign]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("rq").setLevel(logging.WARNING)
    if window := os.environ.get("FAKE_WINDOW"):
        stay_in_window(Path(window))
    settings = start_process()
    child = ChildProcess(settings, "demo", enter)
    return work(open_services(settings, "worker"), "demo", child, WorkerMetrics(), HeartbeatFile(settings.pulse_file))


if __name__ == "__main__":
    skew_clock()
    sys.exit(main())
