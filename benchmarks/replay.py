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
from dataclasses import dataclass, field
from pathlib import Path

from service.jobs.model import Output, Phase
from service.process.heartbeat_file import HeartbeatFile
from service.settings import load_settings
from service.wiring import open_services
from worker.__main__ import work
from worker.messages import Done, Message, Order, Progress, Run, Sampled, Stopped


@dataclass
class ReplayedLine:
    """Messages arrive on schedule, as from a separate process, however long the parent is busy between them."""

    coming: deque[tuple[float, Message]] = field(default_factory=deque[tuple[float, Message]])

    def send(self, message: Order) -> None:  # noqa: ARG002  # every other order is a stop
        self.coming.clear()
        self.coming.append((time.monotonic(), Stopped()))

    def receive(self, timeout_s: float) -> Message | None:
        until = time.monotonic() + timeout_s
        if not self.coming or self.coming[0][0] > until:
            time.sleep(timeout_s)
            return None
        due, message = self.coming.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        return message

    def kill(self) -> None:
        self.coming.clear()


@dataclass
class ReplayedChild(ReplayedLine):
    """Decodes one clip while it samples the next."""

    encode_s: float = 0.0
    steps_s: Sequence[float] = ()
    decode_s: float = 0.0
    _sampled: tuple[float, Run] | None = None

    @property
    def seconds(self) -> float:
        return self.encode_s + sum(self.steps_s) + self.decode_s

    def ensure(self, beat: Callable[[], None]) -> None: ...

    def send(self, message: Order) -> None:
        if not isinstance(message, Run):
            super().send(message)
            return
        now, total = time.monotonic(), len(self.steps_s)
        self.coming = deque([(now, Progress(Phase.ENCODING, 0, total))])
        now += self.encode_s
        for step, seconds in enumerate(self.steps_s, 1):
            now += seconds
            self.coming.append((now, Progress(Phase.SAMPLING, step, total)))
        self.coming.append((now, Sampled(message.execution_id)))
        self._sampled = now, message

    def second(self) -> ReplayedLine:
        assert self._sampled is not None
        (now, run), total = self._sampled, len(self.steps_s)
        output = Output(key=f"videos/{run.job.id}/{run.execution_id}/video.mp4", size_bytes=1, sha256="0" * 64)
        timings = {Phase.ENCODING: self.encode_s, Phase.SAMPLING: sum(self.steps_s), Phase.DECODING: self.decode_s}
        done = Done(output, dict(timings), None)
        return ReplayedLine(deque([(now, Progress(Phase.DECODING, total, total)), (now + self.decode_s, done)]))


def main(script: Path) -> int:
    settings = load_settings()
    child = ReplayedChild(**json.loads(script.read_text()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then stops this process
    return work(open_services(settings), "demo", child, heartbeat_file=HeartbeatFile(settings.pulse_file))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
