"""Runs one job in the parent: start it, let the child work, record the outcome.

Every write is a compare-and-set on the execution id, so a parent that lost its job cannot change it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from redis.exceptions import RedisError

from service.errors import StorageError
from service.jobs.job_errors import RECORD_DAMAGED, WORKER_LOST
from service.jobs.model import Job, JobError, inference_seconds
from service.jobs.store import JobStore
from service.log_config import log_context
from service.process.heartbeat_file import HeartbeatFile
from service.settings import Settings
from service.storage import VideoStorage, object_keys
from service.tracing import NO_TRACING, Tracing
from worker.background_thread import BackgroundThread
from worker.messages import Done, Failed, Sampled
from worker.parent.child_process import Child
from worker.parent.job_monitor import JobMonitor, Outcome, StopReason
from worker.parent.job_trace import JobTrace
from worker.parent.metrics import WorkerMetrics
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")


@dataclass(frozen=True)
class Runner:
    store: JobStore
    storage: VideoStorage
    child: Child
    scratch: Scratch
    settings: Settings
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    heartbeat_file: HeartbeatFile = field(default_factory=HeartbeatFile)
    background: BackgroundThread = field(default_factory=BackgroundThread)
    tracing: Tracing = NO_TRACING

    def run(
        self,
        job_id: str,
        execution_id: str,
        *,
        on_beat: Callable[[], None],
        is_draining: Callable[[], bool],
        on_finished: Callable[[], None] = lambda: None,
    ) -> bool:
        """Work on a job if it is queued. Returns whether it is in a terminal state, so that RQ's entry can be deleted.

        Decoding and upload run in another thread: then False is returned, and that thread calls `on_finished`.
        """
        with log_context(video_id=job_id, execution_id=execution_id):
            job = self._start(job_id, execution_id)
            if job is None:
                log.info("job %s is no longer queued; skipping", job_id)
                return self._is_over(job_id, execution_id)
            log.info("job %s started: attempt %d, execution %s", job_id, job.attempt, execution_id)
            store, settings, metrics, file = self.store, self.settings, self.metrics, self.heartbeat_file
            monitor = JobMonitor(job, execution_id, store, settings, metrics, on_beat, is_draining, file)
            monitor.trace = JobTrace(self.tracing)
            monitor.trace.begin(job, execution_id)
            outcome = monitor.sample(self.child)
            if not isinstance(outcome, Sampled):
                if monitor.must_kill_child:
                    self._wait_for_previous_job(monitor)
                    self.child.kill()
                return self._end(monitor, outcome)
            monitor.wait_until(self.background.is_free)
            self.background.begin(lambda: self._finish(monitor, on_finished))
            return False

    def _start(self, job_id: str, execution_id: str) -> Job | None:
        try:
            return self.store.start(job_id, execution_id)
        except ValueError:
            log.exception("job %s: the record cannot be read", job_id)
            self.store.fail(job_id, None, RECORD_DAMAGED)
            return None

    def _finish(self, monitor: JobMonitor, on_finished: Callable[[], None]) -> None:
        with log_context(video_id=monitor.job.id, execution_id=monitor.execution_id):
            outcome = monitor.finish()
            if monitor.must_kill_child:
                monitor.kill_child()
            if self._end(monitor, outcome):
                on_finished()

    def _wait_for_previous_job(self, monitor: JobMonitor) -> None:
        """Before the child is killed, let it store the previous job's video."""
        until = time.monotonic() + self.settings.stop_grace_s
        monitor.wait_until(lambda seconds: self.background.is_free(seconds) or time.monotonic() > until)

    def _end(self, monitor: JobMonitor, outcome: Outcome) -> bool:
        """Count and record the outcome. Returns whether the job is over."""
        job, execution_id = monitor.job, monitor.execution_id
        if isinstance(outcome, Done):
            self.metrics.completed(job.generation.model, outcome)
        label = _metrics_label(outcome, monitor.must_kill_child)
        self.metrics.end(job.generation.model, execution_id, label)
        monitor.trace.end(label)
        self._retry_while_redis_is_down(monitor, lambda: self._record(job, execution_id, outcome))
        return self._is_over(job.id, execution_id)

    def _record(self, job: Job, execution_id: str, outcome: Outcome) -> None:
        match outcome:
            case Done():
                self._complete(job, execution_id, outcome)
            case Failed(can_retry=can_retry):
                self._fail(job, execution_id, JobError(code=outcome.code, message=outcome.message), can_retry=can_retry)
            case StopReason.CHILD_DIED | StopReason.CHILD_HUNG:
                self._fail(job, execution_id, WORKER_LOST, can_retry=True)
            case StopReason.TIMED_OUT:
                text = f"The job took longer than {self.settings.job_timeout_s} s."
                self._fail(job, execution_id, JobError(code="timeout", message=text), can_retry=False)
            case StopReason.CANCELLED:
                self._delete_checkpoint(job, self.store.finish_cancel(job.id, execution_id))
            case StopReason.DRAINED | StopReason.MODELS_NOT_LOADED:
                log.info("job %s requeued: %s", job.id, outcome)
                self.store.requeue(job, execution_id, counts_as_attempt=False)
            case StopReason.LOST:
                self.metrics.lease_lost()
                log.warning("job %s lost: execution %s no longer owns it", job.id, execution_id)
            case _:
                assert_never(outcome)

    def _complete(self, job: Job, execution_id: str, done: Done) -> None:
        seconds = sum(done.timings.values())
        is_recorded = self.store.complete(job.id, execution_id, done.output, done.timings, done.peak_memory_mb)
        log.info("job %s %s after %.1f s", job.id, "completed" if is_recorded else "lost", seconds)
        if is_recorded:
            self.store.record_duration(job.generation.model, inference_seconds(done.timings))
        else:
            self.metrics.lease_lost()
        self._delete_checkpoint(job, is_recorded)

    def _fail(self, job: Job, execution_id: str, error: JobError, *, can_retry: bool) -> None:
        if can_retry and job.attempt < self.settings.max_attempts:
            self.store.requeue(job, execution_id)
        else:
            self._delete_checkpoint(job, self.store.fail(job.id, execution_id, error))

    def _retry_while_redis_is_down(self, monitor: JobMonitor, do: Callable[[], None]) -> None:
        """Retry while Redis is down, rather than lose minutes of GPU time. Raises RedisError after the time limit."""
        began, settings = time.monotonic(), self.settings
        while True:
            try:
                return do()
            except RedisError as e:
                limit_s = settings.stop_grace_s if monitor.is_draining() else settings.commit_patience_s
                if time.monotonic() - began > limit_s:
                    raise
                log.warning("cannot record the outcome of a job, retrying: %s", type(e).__name__)
                monitor.heartbeat_file.beat()
                time.sleep(settings.redis_retry_s)

    def _delete_checkpoint(self, job: Job, is_recorded: bool) -> None:
        """When the job is over. Maintenance deletes what remains."""
        if not is_recorded:
            return
        try:
            self.storage.delete(object_keys.checkpoint(job.id))
        except StorageError as e:
            log.warning("job %s: cannot delete the checkpoint: %s", job.id, e)

    def _is_over(self, job_id: str, execution_id: str) -> bool:
        """If so, remove its files on scratch; until then another execution may need them."""
        try:
            job = self.store.get(job_id)
        except ValueError:
            return False
        is_over = job is None or job.state.is_terminal
        if is_over:
            self.scratch.discard(job_id, execution_id)
        return is_over


def _metrics_label(outcome: Outcome, is_killed: bool) -> str:
    match outcome:
        case Done():
            return "completed"
        case Failed():
            return outcome.code
        case StopReason.CHILD_DIED:
            return "died"
        case _:
            return "killed" if is_killed else "stopped"
