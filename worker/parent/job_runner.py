"""Runs one job in the parent: start it, let the child work, record the outcome.

Every write is a compare-and-set on the execution id, so a parent that lost its job cannot change it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, assert_never

from redis.exceptions import RedisError

from service.errors import StorageError
from service.jobs.job_errors import RECORD_DAMAGED, WORKER_LOST
from service.jobs.model import Job, JobError
from service.jobs.store import JobStore
from service.log_config import log_context
from service.process.heartbeat_file import HeartbeatFile
from service.settings import Settings
from service.storage import VideoStorage, object_keys
from worker.messages import Done, Failed, Sampled
from worker.parent.child_process import Channel, Child, ChildDied
from worker.parent.job_monitor import JobMonitor, StopReason
from worker.parent.postprocessing import PostprocessingThread
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")

T = TypeVar("T")


@dataclass(frozen=True)
class Runner:
    store: JobStore
    storage: VideoStorage
    child: Child
    scratch: Scratch
    settings: Settings
    on_lost: Callable[[], None] = lambda: None
    heartbeat_file: HeartbeatFile = field(default_factory=HeartbeatFile)
    postprocessing: PostprocessingThread = field(default_factory=PostprocessingThread)

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
            monitor = JobMonitor(
                job, execution_id, self.store, self.child, self.settings, on_beat, is_draining, self.heartbeat_file
            )
            outcome = self._outcome(monitor)
            if not isinstance(outcome, Sampled):
                return self._end(job, execution_id, outcome, is_draining)
            channel = self.child.second()
            monitor.wait_until(self.postprocessing.is_free)
            hidden = replace(self, heartbeat_file=HeartbeatFile())  # the heartbeat file reports the main thread only
            self.postprocessing.begin(lambda: hidden._finish(monitor, channel, on_finished))
            return False

    def _finish(self, monitor: JobMonitor, channel: Channel, on_finished: Callable[[], None]) -> None:
        """Decoding and upload. Kills a bad child; the main thread replaces it."""
        job, execution_id = monitor.job, monitor.execution_id
        with log_context(video_id=job.id, execution_id=execution_id):
            try:
                outcome = monitor.finish(channel)
            except ChildDied as e:
                outcome = _died(job, e)
            if monitor.is_stuck or (isinstance(outcome, Failed) and outcome.is_broken):
                channel.kill()
            if self._end(job, execution_id, outcome, monitor.is_draining):
                on_finished()

    def _start(self, job_id: str, execution_id: str) -> Job | None:
        try:
            return self.store.start(job_id, execution_id)
        except ValueError:
            log.exception("job %s: the record cannot be read", job_id)
            self.store.fail(job_id, None, RECORD_DAMAGED)
            return None

    def _outcome(self, monitor: JobMonitor) -> Done | Failed | StopReason | Sampled:
        """The outcome of the job. A broken or hanging child is killed before this returns."""
        has_died = False
        try:
            outcome = monitor.outcome()
        except ChildDied as e:
            has_died, outcome = True, _died(monitor.job, e)
        if monitor.is_stuck or (isinstance(outcome, Failed) and outcome.is_broken):
            self._wait_for_previous_job(monitor)
        elif not has_died:
            return outcome
        self.child.kill()
        return outcome

    def _wait_for_previous_job(self, monitor: JobMonitor) -> None:
        """Before the child is killed, let the previous job finish its upload."""
        until = time.monotonic() + self.settings.stop_grace_s
        monitor.wait_until(lambda seconds: self.postprocessing.is_free(seconds) or time.monotonic() > until)

    def _end(
        self, job: Job, execution_id: str, outcome: Done | Failed | StopReason, is_draining: Callable[[], bool]
    ) -> bool:
        self._retry_while_redis_is_down(lambda: self._record_outcome(job, execution_id, outcome), is_draining)
        return self._is_over(job.id, execution_id)

    def _record_outcome(self, job: Job, execution_id: str, outcome: Done | Failed | StopReason) -> None:
        match outcome:
            case Done(output, timings, peak_memory_mb):
                is_recorded = self.store.complete(job.id, execution_id, output, timings, peak_memory_mb)
                log.info(
                    "job %s %s after %.1f s", job.id, "completed" if is_recorded else "lost", sum(timings.values())
                )
                if is_recorded:
                    self.store.record_duration(job.generation.model, sum(timings.values()))
                else:
                    self.on_lost()
                self._delete_checkpoint(job, is_recorded)
            case Failed(code, text, can_retry):
                if can_retry and job.attempt < self.settings.max_attempts:
                    self.store.requeue(job, execution_id)
                else:
                    is_recorded = self.store.fail(job.id, execution_id, JobError(code=code, message=text))
                    self._delete_checkpoint(job, is_recorded)
            case StopReason.CANCELLED:
                self._delete_checkpoint(job, self.store.finish_cancel(job.id, execution_id))
            case StopReason.DRAINED:
                log.info("job %s requeued: worker shutting down", job.id)
                self.store.requeue(job, execution_id, counts_as_attempt=False)
            case StopReason.TIMED_OUT:
                text = f"The job took longer than {self.settings.job_timeout_s} s."
                is_recorded = self.store.fail(job.id, execution_id, JobError(code="timeout", message=text))
                self._delete_checkpoint(job, is_recorded)
            case StopReason.LOST:
                self.on_lost()
                log.warning("job %s lost: execution %s no longer owns it", job.id, execution_id)
            case _:
                assert_never(outcome)

    def _retry_while_redis_is_down(self, do: Callable[[], T], is_draining: Callable[[], bool]) -> T:
        """Retry while Redis is down, rather than lose minutes of GPU time. Raises RedisError after the time limit."""
        began = time.monotonic()
        while True:
            try:
                return do()
            except RedisError as e:
                settings = self.settings
                patience_s = settings.stop_grace_s if is_draining() else settings.commit_patience_s
                if time.monotonic() - began > patience_s:
                    raise
                log.warning("cannot record the outcome of a job, retrying: %s", type(e).__name__)
                self.heartbeat_file.beat()
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


def _died(job: Job, e: ChildDied) -> Failed:
    log.error("job %s: child process failed: %s", job.id, e)
    return Failed(WORKER_LOST.code, WORKER_LOST.message, can_retry=True)
