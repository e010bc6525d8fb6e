"""Monitors one job in the parent while the child works on it: renews the lease, handles cancel and drain, detects a
hanging child. Returns the child's result or why there is none. Writes only progress and the lease.
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
from service.storage.metrics import StorageCall
from worker.messages import CannotLoad, Done, Failed, Progress, Ready, Run, Sampled, Stop, Stopped, Tuning
from worker.parent.child_process import Channel, Child, ChildDied, ModelsNotLoaded
from worker.parent.job_trace import JobTrace
from worker.parent.metrics import WorkerMetrics

log = logging.getLogger("ivmix.worker")

POLL_S = 0.5  # longest wait for a report: bounds the delay of a drain
FINISH_S = 3.0  # a drain gives a fully sampled clip this long to be stored


class StopReason(StrEnum):
    """Why a job has no result from the child."""

    CANCELLED = "cancelled"
    DRAINED = "drained"
    LOST = "lost"  # owned by another execution, or ended
    TIMED_OUT = "timed_out"
    CHILD_HUNG = "child_hung"
    CHILD_DIED = "child_died"
    MODELS_NOT_LOADED = "models_not_loaded"  # by this worker; another one may have them


Outcome = Done | Failed | StopReason

STOP_REASONS = {LeaseReply.CANCEL: StopReason.CANCELLED, LeaseReply.LOST: StopReason.LOST}


@dataclass
class JobMonitor:
    job: Job
    execution_id: str
    store: JobStore
    settings: Settings
    metrics: WorkerMetrics
    on_beat: Callable[[], None]
    """Called after every lease renewal."""
    is_draining: Callable[[], bool]
    """Whether this worker is shutting down."""
    heartbeat_file: HeartbeatFile
    trace: JobTrace = field(default_factory=JobTrace)
    must_kill_child: bool = False
    """It ended, is broken, hangs or did not stop in time."""
    _channel: Channel | None = None
    _phase: Phase = Phase.ENCODING
    _started_at: float = field(default_factory=time.monotonic)
    _last_report_at: float = 0.0
    _stop_reason: StopReason | None = None
    _stop_seen_at: float | None = None
    _stop_sent_at: float | None = None
    _next_beat_at: float = 0.0
    _is_redis_away: bool = False

    def sample(self, child: Child) -> Outcome | Sampled:
        """Load the models if necessary, and have the job sampled. Another outcome than `Sampled` is final."""
        try:
            child.ensure(self._renew_lease_while_loading)
            if self._stop_reason is not None:
                child.kill()  # it may not have loaded the models yet
                return self._stop_reason
            self.metrics.begin(self.execution_id)
            self._channel = child.start(Run(self.job, self.execution_id, may_resume=self.job.step > 0))
        except ModelsNotLoaded:
            return StopReason.MODELS_NOT_LOADED
        except ChildDied as e:
            return self._died(e)
        outcome = self._watch(self._channel)
        self.metrics.networks_idle()
        return outcome

    def finish(self) -> Outcome:
        """After `Sampled`, in the background thread: RQ and the heartbeat file observe the main thread."""
        self.on_beat, self.heartbeat_file, self._phase = lambda: None, HeartbeatFile(), Phase.DECODING
        assert self._channel is not None
        outcome = self._watch(self._channel)
        assert not isinstance(outcome, Sampled)
        return outcome

    def wait_until(self, condition: Callable[[float], bool]) -> None:
        """Renew the lease until `condition(timeout_s)` is true."""
        while not condition(POLL_S):
            self._renew_lease()

    def kill_child(self) -> None:
        if self._channel is not None:
            self._channel.kill()

    def _watch(self, channel: Channel) -> Outcome | Sampled:
        self._last_report_at = time.monotonic()
        try:
            while True:
                progress, report = None, channel.receive(POLL_S)
                now = time.monotonic()  # before calls of Redis, which may take long while the child works
                self._last_report_at = self._last_report_at if report is None else now
                match report:
                    case Progress() as progress:
                        self._phase = progress.phase
                        self.trace.enter(progress.phase)
                        self.metrics.progress(self.job.generation.model, progress)
                    case StorageCall() as call:
                        self.metrics.storage.observe(call)
                        self.trace.storage_called(call)
                    case Sampled() | Done() | Failed():
                        self.must_kill_child = isinstance(report, Failed) and report.is_broken
                        return report
                    case Stopped():
                        assert self._stop_reason is not None
                        return self._stop_reason
                    case Ready() | Tuning() | CannotLoad() | None:
                        pass
                self._renew_lease(progress)
                self._send_stop_if_due(channel, now)
                if (reason := self._overdue(now)) is not None:
                    self.must_kill_child = True
                    return reason
        except ChildDied as e:
            return self._died(e)

    def _send_stop_if_due(self, channel: Channel, now: float) -> None:
        """Once. A drain gives a fully sampled clip FINISH_S to be stored."""
        if self._stop_reason is None or self._stop_sent_at is not None:
            return
        is_drain = self._stop_reason is StopReason.DRAINED
        self._stop_seen_at = self._stop_seen_at or now
        is_sampled = self._phase in (Phase.DECODING, Phase.UPLOADING)
        if now >= self._stop_seen_at + (FINISH_S if is_drain and is_sampled else 0.0):
            channel.send(Stop(save_checkpoint=is_drain))
            self._stop_sent_at = now

    def _overdue(self, now: float) -> StopReason | None:
        """Why the child must be killed, if so."""
        settings = self.settings
        if self._stop_sent_at is not None and now > self._stop_sent_at + settings.stop_grace_s:
            return self._stop_reason
        if now - self._started_at > settings.job_timeout_s:
            return StopReason.TIMED_OUT
        # An upload may wait for an unavailable storage; that has a separate limit.
        if self._phase is not Phase.UPLOADING and now - self._last_report_at > settings.stall_timeout_s:
            log.error("job %s: no step for %g s", self.job.id, settings.stall_timeout_s)
            return StopReason.CHILD_HUNG
        return None

    def _died(self, e: ChildDied) -> StopReason:
        log.error("job %s: child process failed: %s", self.job.id, e)
        self.must_kill_child = True
        return StopReason.CHILD_DIED

    def _renew_lease_while_loading(self) -> bool:
        self._renew_lease()
        return self._stop_reason is None

    def _renew_lease(self, progress: Progress | None = None) -> None:
        """Renew the lease or write progress, and note a request to stop."""
        self.heartbeat_file.beat()
        if self._stop_reason is None and self.is_draining():
            self._stop_reason = StopReason.DRAINED
        name, now = (self.job.id, self.execution_id), time.monotonic()
        beats = now >= self._next_beat_at
        try:
            if progress is not None:
                done = (progress.step, progress.total, progress.phase)
                lease = self.store.report_progress(*name, *done, progress.preview, progress.gpu_seconds)
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
