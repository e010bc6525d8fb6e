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

from service.jobs.model import Job, Phase
from service.jobs.store import JobStore, LeaseReply
from service.process.heartbeat_file import HeartbeatFile
from service.settings import Settings
from worker.messages import Cancel, Done, Drain, Failed, Progress, Ready, Run, Sampled, Stopped
from worker.parent.child_process import Channel, Child, ChildDied

log = logging.getLogger("ivmix.worker")

POLL_S = 0.5  # how often a silent child is looked at: bounds how late a drain is noticed
FINISH_S = 3.0  # what a clip that has all its steps is given to be stored when the worker is told to stop


class Halt(StrEnum):
    """Why a job stopped without the child's word."""

    CANCELLED = "cancelled"
    DRAINED = "drained"
    LOST = "lost"  # it is somebody else's, or has ended
    TIMED_OUT = "timed_out"


HALTS = {LeaseReply.CANCEL: Halt.CANCELLED, LeaseReply.LOST: Halt.LOST}


def _do_nothing() -> None: ...


class _Halted(Exception):
    """There is a reason to stop, and no child at work that would have to be asked."""


@dataclass
class JobMonitor:
    """`on_beat` is called with every beat, `is_draining` says whether this worker is to stop.

    `is_stuck`: the child did not stop when it had to, and can only be killed.
    """

    job: Job
    execution_id: str
    store: JobStore
    child: Child
    settings: Settings
    on_beat: Callable[[], None]
    is_draining: Callable[[], bool]
    heartbeat_file: HeartbeatFile = field(default_factory=HeartbeatFile)
    is_stuck: bool = False
    _halt: Halt | None = None
    _next_beat: float = 0.0
    _is_redis_away: bool = False
    _began: float = field(default_factory=time.monotonic)

    def outcome(self) -> Done | Failed | Halt | Sampled:
        """Have the job done, or its steps at least. Raises ChildDied, also for a child that hangs."""
        try:
            self.child.ensure(self._look_while_loading)
        except _Halted:
            self.is_stuck = True
            assert self._halt is not None
            return self._halt
        self.child.send(Run(self.job, self.execution_id, may_resume=self.job.step > 0))
        return self._watch(self.child, drain_after_s=0.0)

    def wait_until(self, is_so: Callable[[float], bool]) -> None:
        """Keep the job while something else is waited for; `is_so` is given seconds it may take."""
        while not is_so(POLL_S):
            self._look()

    def finish(self, line: Channel) -> Done | Failed | Halt:
        """After `Sampled`, in another thread: the main one has RQ and the heartbeat. Raises ChildDied."""
        self.on_beat, self.heartbeat_file = _do_nothing, HeartbeatFile()
        outcome = self._watch(line, drain_after_s=FINISH_S)
        if isinstance(outcome, Sampled):
            raise ChildDied("the child sampled one job twice")
        return outcome

    def _watch(self, line: Channel, *, drain_after_s: float) -> Done | Failed | Halt | Sampled:
        settings = self.settings
        last_sign, phase = time.monotonic(), Phase.ENCODING
        halted_at = told_at = None
        while True:
            message = line.receive(POLL_S)
            now = time.monotonic()
            match message:
                case None:
                    self._look()
                case Progress():
                    last_sign, phase = now, message.phase
                    self._look(message)
                case Done() | Failed() | Sampled():
                    return message
                case Stopped() if self._halt is not None:
                    return self._halt
                case Ready() | Stopped():
                    raise ChildDied(f"the child said {message} out of turn")
            if self._halt is not None:
                halted_at = now if halted_at is None else halted_at
                order, after_s = (Drain, drain_after_s) if self._halt is Halt.DRAINED else (Cancel, 0.0)
                if told_at is None and now >= halted_at + after_s:
                    line.send(order(self.execution_id))
                    told_at = now
                elif told_at is not None and now > told_at + settings.stop_grace_s:
                    self.is_stuck = True
                    return self._halt
            if now - self._began > settings.job_timeout_s:
                self.is_stuck = True
                return Halt.TIMED_OUT
            # An upload waits for a storage that is away; that has its own limit.
            if phase is not Phase.UPLOADING and now - last_sign > settings.stall_timeout_s:
                self.is_stuck = True
                raise ChildDied(f"no step for {settings.stall_timeout_s:g} s")

    def _look_while_loading(self) -> None:
        self._look()
        if self._halt is not None:
            raise _Halted

    def _look(self, progress: Progress | None = None) -> None:
        """Tell Redis that we are there, and hear whether to go on."""
        self.heartbeat_file.beat()
        if self._halt is None and self.is_draining():
            self._halt = Halt.DRAINED
        name, now = (self.job.id, self.execution_id), time.monotonic()
        beats = now >= self._next_beat
        try:
            if progress is not None:
                verdict = self.store.report_progress(*name, progress.step, progress.total, progress.phase)
            elif self._is_redis_away and not beats:
                return
            else:
                verdict = self.store.renew_lease(*name) if beats else self.store.check_lease(*name)
        except RedisError as e:
            # Nothing is concluded from an outage: who gets the job is decided when Redis is back.
            log.warning("%s: no beat: %s", self.job.id, type(e).__name__)
            self._is_redis_away, self._next_beat = True, time.monotonic() + self.settings.redis_retry_s
            return
        self._is_redis_away = False
        if beats:
            self._next_beat = now + self.settings.beat_s
            self.on_beat()
        if self._halt in (None, Halt.DRAINED) and verdict in HALTS:
            self._halt = HALTS[verdict]
