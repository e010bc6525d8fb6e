"""`python -m benchmarks.replay SCRIPT.json`: a real worker process whose child only waits for as long as a GPU took.

Queue, records, leases, progress and RQ are those of `ivmix worker`; nothing is sampled or stored.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.jobs.model import Output, Phase
from service.process.heartbeat_file import HeartbeatFile
from service.settings import load_settings
from service.wiring import open_services
from worker.__main__ import work
from worker.messages import Done, Progress, Report, Run, Sampled, Stop, Stopped
from worker.parent.metrics import WorkerMetrics


@dataclass
class ReplayedJob:
    """Reports arrive on schedule, as from a separate process, however long the parent is busy between them."""

    schedule: deque[tuple[float, Report]]

    def send(self, message: Run | Stop) -> None:  # noqa: ARG002  # Run was the argument of `start`, so this is a stop
        self.schedule = deque([(time.monotonic(), Stopped())])

    def receive(self, timeout_s: float) -> Report | None:
        until = time.monotonic() + timeout_s
        if not self.schedule or self.schedule[0][0] > until:
            time.sleep(timeout_s)
            return None
        due, report = self.schedule.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        return report

    def kill(self) -> None:
        self.schedule.clear()


@dataclass
class ReplayedChild:
    """Decodes one clip while it samples the next."""

    encode_s: float = 0.0
    steps_s: Sequence[float] = ()
    decode_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.encode_s + sum(self.steps_s) + self.decode_s

    @property
    def is_loaded(self) -> bool:
        return True

    def ensure(self, beat: Callable[[], bool]) -> None: ...

    def start(self, run: Run) -> ReplayedJob:
        now, total = time.monotonic(), len(self.steps_s)
        schedule: deque[tuple[float, Report]] = deque([(now, Progress(Phase.ENCODING, 0, total))])
        now += self.encode_s
        for step, seconds in enumerate(self.steps_s, 1):
            now += seconds
            schedule.append((now, Progress(Phase.SAMPLING, step, total)))
        output = Output(key=f"videos/{run.job.id}/{run.execution_id}/video.mp4", size_bytes=1, sha256="0" * 64)
        timings = {Phase.ENCODING: self.encode_s, Phase.SAMPLING: sum(self.steps_s), Phase.DECODING: self.decode_s}
        schedule += [
            (now, Sampled()),
            (now, Progress(Phase.DECODING, total, total)),
            (now + self.decode_s, Done(output, dict(timings), None)),
        ]
        return ReplayedJob(schedule)

    def kill(self) -> None: ...


def main(script: Path) -> int:
    settings = load_settings()
    child = ReplayedChild(**json.loads(script.read_text()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then stops this process
    return work(open_services(settings), "demo", child, WorkerMetrics(), HeartbeatFile(settings.pulse_file))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
