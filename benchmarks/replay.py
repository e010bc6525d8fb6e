"""`python -m benchmarks.replay STEPS.json`: a real worker process whose child only lets the time pass that a GPU took.

Queue, record, leases, progress and RQ are the ones of `ivmix worker`; nothing is drawn and nothing is stored.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.jobs import Output, Phase
from service.pulse import Pulse
from service.settings import load_settings
from service.wiring import open_services
from worker.__main__ import work
from worker.messages import Cancel, Done, Drain, Message, Order, Progress, Run, Stopped


@dataclass
class ReplayedChild:
    """Time goes by as for a process of its own: what the parent does between two messages does not make it later."""

    encode_s: float
    steps_s: Sequence[float]
    decode_s: float
    _coming: deque[tuple[float, Message]] = field(default_factory=deque[tuple[float, Message]])

    @property
    def seconds(self) -> float:
        return self.encode_s + sum(self.steps_s) + self.decode_s

    def ensure(self, beat: Callable[[], None]) -> None: ...

    def send(self, message: Order) -> None:
        self._coming.clear()
        match message:
            case Run():
                self._coming.extend(self._messages(time.monotonic(), message))
            case Cancel() | Drain():
                self._coming.append((time.monotonic(), Stopped()))

    def receive(self, timeout_s: float) -> Message | None:
        until = time.monotonic() + timeout_s
        if not self._coming or self._coming[0][0] > until:
            time.sleep(timeout_s)
            return None
        due, message = self._coming.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        return message

    def kill(self) -> None:
        self._coming.clear()

    def _messages(self, now: float, run: Run) -> list[tuple[float, Message]]:
        total, key = len(self.steps_s), f"videos/{run.job.id}/{run.execution_id}/video.mp4"
        found: list[tuple[float, Message]] = [(now, Progress(Phase.ENCODING, 0, total))]
        now += self.encode_s
        for step, seconds in enumerate(self.steps_s, 1):
            now += seconds
            found.append((now, Progress(Phase.SAMPLING, step, total)))
        found.append((now, Progress(Phase.DECODING, total, total)))
        now += self.decode_s
        timings = {Phase.ENCODING: self.encode_s, Phase.SAMPLING: sum(self.steps_s), Phase.DECODING: self.decode_s}
        found.append((now, Done(Output(key=key, size_bytes=1, sha256="0" * 64), dict(timings), None)))
        return found


def main(script: Path) -> int:
    settings = load_settings()
    child = ReplayedChild(**json.loads(script.read_text()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then ends us
    return work(open_services(settings), "demo", child, pulse=Pulse(settings.pulse_file))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
