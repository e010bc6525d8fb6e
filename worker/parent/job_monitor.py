"""Monitors one job in the parent while the child works on it: renews the lease, handles cancel and drain, detects a
hanging child. Returns the child's result or the reason for stopping. Writes only progress and the lease.
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

POLL_S = 0.5  # longest wait for a message: bounds the delay of a drain
FINISH_S = 3.0  # a drain gives a fully sampled clip this long to be stored


class StopReason(StrEnum):
    """Why the parent stopped a job."""

    CANCELLED = "cancelled"
    DRAINED = "drained"
    LOST = "lost"  # owned by another execution, or ended
    TIMED_OUT = "timed_out"


STOP_REASONS = {LeaseReply.CANCEL: StopReason.CANCELLED, LeaseReply.LOST: StopReason.LOST}


def _do_nothing() -> None: ...


class _StoppedWhileLoading(Exception):
    """A stop was requested before the child had the job."""


@dataclass
class JobMonitor:
    """`on_beat` is called after every lease renewal; `is_draining` returns whether this worker is shutting down.

    `is_stuck`: the child did not stop in time and must be killed.
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
    _stop_reason: StopReason | None = None
    _next_beat_at: float = 0.0
    _is_redis_away: bool = False
    _started_at: float = field(default_factory=time.monotonic)

    def outcome(self) -> Done | Failed | StopReason | Sampled:
        """Have the job done, or at least sampled. Raises ChildDied, also for a hanging child."""
        try:
            self.child.ensure(self._check_while_loading)
        except _StoppedWhileLoading:
            self.is_stuck = True
            assert self._stop_reason is not None
            return self._stop_reason
        self.child.send(Run(self.job, self.execution_id, may_resume=self.job.step > 0))
        return self._wait_for_outcome(self.child, drain_after_s=0.0)

    def wait_until(self, condition: Callable[[float], bool]) -> None:
        """Renew the lease until `condition(timeout_s)` is true."""
        while not condition(POLL_S):
            self._renew_lease()

    def finish(self, channel: Channel) -> Done | Failed | StopReason:
        """After `Sampled`, in the postprocessing thread: the main one has RQ and the heartbeat. Raises ChildDied."""
        self.on_beat, self.heartbeat_file = _do_nothing, HeartbeatFile()
        outcome = self._wait_for_outcome(channel, drain_after_s=FINISH_S)
        if isinstance(outcome, Sampled):
            raise ChildDied("the child sampled one job twice")
        return outcome

    def _wait_for_outcome(self, channel: Channel, *, drain_after_s: float) -> Done | Failed | StopReason | Sampled:
        settings = self.settings
        last_progress_at, phase = time.monotonic(), Phase.ENCODING
        stop_due_from = stop_sent_at = None
        while True:
            message = channel.receive(POLL_S)
            now = time.monotonic()
            match message:
                case None:
                    self._renew_lease()
                case Progress():
                    last_progress_at, phase = now, message.phase
                    self._renew_lease(message)
                case Done() | Failed() | Sampled():
                    return message
                case Stopped() if self._stop_reason is not None:
                    return self._stop_reason
                case Ready() | Stopped():
                    raise ChildDied(f"unexpected message {message}")
            if self._stop_reason is not None:
                stop_due_from = now if stop_due_from is None else stop_due_from
                order, after_s = (Drain, drain_after_s) if self._stop_reason is StopReason.DRAINED else (Cancel, 0.0)
                if stop_sent_at is None and now >= stop_due_from + after_s:
                    channel.send(order(self.execution_id))
                    stop_sent_at = now
                elif stop_sent_at is not None and now > stop_sent_at + settings.stop_grace_s:
                    self.is_stuck = True
                    return self._stop_reason
            if now - self._started_at > settings.job_timeout_s:
                self.is_stuck = True
                return StopReason.TIMED_OUT
            # An upload may wait for an unavailable storage; that has a separate limit.
            if phase is not Phase.UPLOADING and now - last_progress_at > settings.stall_timeout_s:
                self.is_stuck = True
                raise ChildDied(f"no step for {settings.stall_timeout_s:g} s")

    def _check_while_loading(self) -> None:
        self._renew_lease()
        if self._stop_reason is not None:
            raise _StoppedWhileLoading

    def _renew_lease(self, progress: Progress | None = None) -> None:
        """Renew the lease or write progress, and note a request to stop."""
        self.heartbeat_file.beat()
        if self._stop_reason is None and self.is_draining():
            self._stop_reason = StopReason.DRAINED
        name, now = (self.job.id, self.execution_id), time.monotonic()
        beats = now >= self._next_beat_at
        try:
            if progress is not None:
                lease = self.store.report_progress(*name, progress.step, progress.total, progress.phase)
            elif self._is_redis_away and not beats:
                return
            else:
                lease = self.store.renew_lease(*name) if beats else self.store.check_lease(*name)
        except RedisError as e:
            # Not a reason to stop: the lease decides who owns the job once Redis is reachable again.
            log.warning("job %s: cannot renew the lease: %s", self.job.id, type(e).__name__)
            self._is_redis_away, self._next_beat_at = True, time.monotonic() + self.settings.redis_retry_s
            return
        self._is_redis_away = False
        if beats:
            self._next_beat_at = now + self.settings.beat_s
            self.on_beat()
        if self._stop_reason in (None, StopReason.DRAINED) and lease in STOP_REASONS:
            self._stop_reason = STOP_REASONS[lease]
