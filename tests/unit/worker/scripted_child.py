"""A child whose faults are the subject of a test."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from service.jobs.model import Phase
from worker.messages import Progress, Report, Run, Stop
from worker.parent.child_process import ChildDied

STEP = Progress(Phase.SAMPLING, 1, 20)


class ScriptedChild:
    """A child and the channel of its job in one. Every `receive` gives the next entry of the script: a report, an
    exception, None for silence, or an event: silence until it is set. A Stop continues with `after_stop`."""

    def __init__(
        self,
        *script: Report | Exception | threading.Event | None,
        after_stop: Report | None = None,
        is_loading: bool = False,
        load_failure: ChildDied | None = None,
    ) -> None:
        self._script = deque(script)
        self._after_stop = after_stop
        self._is_loading = is_loading
        self._load_failure = load_failure
        self.sent: list[Run | Stop] = []
        self.kills = 0
        self.device, self.configuration, self.gpus = "CPU", None, 1
        self.is_loaded = True

    def ensure(self, beat: Callable[[], bool]) -> None:
        if self._is_loading:
            beat()
        if self._load_failure is not None:
            raise self._load_failure

    def start(self, run: Run) -> ScriptedChild:
        self.sent.append(run)
        return self

    def send(self, message: Run | Stop) -> None:
        self.sent.append(message)
        if self._after_stop is not None:
            self._script = deque([self._after_stop])

    def receive(self, timeout_s: float) -> Report | None:
        entry = self._script.popleft() if self._script else None
        if isinstance(entry, Exception):
            raise entry
        if isinstance(entry, threading.Event):
            if not entry.wait(min(timeout_s, 0.01)):
                self._script.appendleft(entry)
            return None
        return entry

    def kill(self) -> None:
        self.kills += 1
