"""The parent while its child works on one job: leases, the client's cancel, the operator's drain, and a child that
hangs. Ends with what the child said, or with why it had to stop. Writes progress and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from redis.exceptions import RedisError

from service.jobs import Job, Phase
from service.settings import Settings
from service.store import JobStore, Verdict
from worker.messages import Cancel, Done, Drain, Failed, Progress, Ready, Run, Stopped
from worker.resident import Child, ChildDied

log = logging.getLogger("ivmix.worker")

POLL_S = 0.5  # how often a silent child is looked at: bounds how late a drain is noticed


class Halt(StrEnum):
    """Why a job stopped without the child's word."""

    CANCELLED = "cancelled"
    DRAINED = "drained"
    LOST = "lost"  # it is somebody else's, or has ended
    TIMED_OUT = "timed_out"


HALTS = {Verdict.CANCEL: Halt.CANCELLED, Verdict.LOST: Halt.LOST}


class _Halted(Exception):
    """There is a reason to stop, and no child at work that would have to be asked."""


@dataclass
class Watch:
    """`on_beat` is called with every beat, `is_draining` says whether this worker is to stop."""

    job: Job
    execution_id: str
    store: JobStore
    child: Child
    settings: Settings
    on_beat: Callable[[], None]
    is_draining: Callable[[], bool]
    _halt: Halt | None = None
    _next_beat: float = 0.0
    _is_redis_away: bool = False
    _began: float = field(default_factory=time.monotonic)

    def outcome(self) -> Done | Failed | Halt:
        """Have the job done. Raises ChildDied, also for a child that hangs."""
        try:
            self.child.ensure(self._look_while_loading)
        except _Halted:
            self.child.kill()
            assert self._halt is not None
            return self._halt
        self.child.send(Run(self.job, self.execution_id, may_resume=self.job.step > 0))
        return self._watch()

    def _watch(self) -> Done | Failed | Halt:
        settings = self.settings
        last_sign, phase, stop_by = time.monotonic(), Phase.ENCODING, None
        while True:
            message = self.child.receive(POLL_S)
            now = time.monotonic()
            match message:
                case None:
                    self._look()
                case Progress():
                    last_sign, phase = now, message.phase
                    self._look(message)
                case Done() | Failed():
                    return message
                case Stopped() if self._halt is not None:
                    return self._halt
                case Ready() | Stopped():
                    raise ChildDied(f"the child said {message} out of turn")
            if self._halt is not None:
                if stop_by is None:
                    self.child.send((Drain if self._halt is Halt.DRAINED else Cancel)(self.execution_id))
                    stop_by = now + settings.stop_grace_s
                elif now > stop_by:
                    self.child.kill()
                    return self._halt
            if now - self._began > settings.job_timeout_s:
                self.child.kill()
                return Halt.TIMED_OUT
            # An upload waits for a storage that is away; that has its own limit.
            if phase is not Phase.UPLOADING and now - last_sign > settings.stall_timeout_s:
                raise ChildDied(f"no step for {settings.stall_timeout_s:g} s")

    def _look_while_loading(self) -> None:
        self._look()
        if self._halt is not None:
            raise _Halted

    def _look(self, progress: Progress | None = None) -> None:
        """Tell Redis that we are there, and hear whether to go on."""
        if self._halt is None and self.is_draining():
            self._halt = Halt.DRAINED
        name, now = (self.job.id, self.execution_id), time.monotonic()
        beats = now >= self._next_beat
        try:
            if progress is not None:
                verdict = self.store.progress(*name, progress.step, progress.total, progress.phase)
            elif self._is_redis_away and not beats:
                return
            else:
                verdict = self.store.beat(*name) if beats else self.store.ask(*name)
        except RedisError as e:
            # Nothing is concluded from an outage: who gets the job is decided when Redis is back.
            log.warning("%s: no beat: %s", self.job.id, type(e).__name__)
            self._is_redis_away, self._next_beat = True, time.monotonic() + self.settings.again_s
            return
        self._is_redis_away = False
        if beats:
            self._next_beat = now + self.settings.beat_s
            self.on_beat()
        if self._halt in (None, Halt.DRAINED) and verdict in HALTS:
            self._halt = HALTS[verdict]
