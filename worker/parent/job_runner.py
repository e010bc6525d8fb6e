"""One job as the parent sees it: take it, have it worked on, write down how it ended.

Every write is a compare-and-set on the execution id, so a parent that lost its job changes nothing.
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
from worker.parent.job_monitor import Halt, JobMonitor
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
    finishing: PostprocessingThread = field(default_factory=PostprocessingThread)

    def run(
        self,
        job_id: str,
        execution_id: str,
        *,
        on_beat: Callable[[], None],
        is_draining: Callable[[], bool],
        on_over: Callable[[], None] = lambda: None,
    ) -> bool:
        """Work on a job if it waits. Returns whether it is over, whoever ended it: then RQ's entry can go.

        A job whose steps are done is finished in another thread: False is returned for the time being, and `on_over`
        is called from there.
        """
        with log_context(video_id=job_id, execution_id=execution_id):
            job = self._start(job_id, execution_id)
            if job is None:
                log.info("%s is not waiting any more", job_id)
                return self._is_over(job_id, execution_id)
            log.info("%s started, attempt %d, execution %s", job_id, job.attempt, execution_id)
            watch = JobMonitor(
                job, execution_id, self.store, self.child, self.settings, on_beat, is_draining, self.heartbeat_file
            )
            outcome = self._outcome(watch)
            if not isinstance(outcome, Sampled):
                return self._end(job, execution_id, outcome, is_draining)
            line = self.child.second()
            watch.wait_until(self.finishing.is_free)
            hidden = replace(
                self, heartbeat_file=HeartbeatFile()
            )  # the main thread's heartbeat_file says how the main thread is
            self.finishing.begin(lambda: hidden._finish(watch, line, on_over))
            return False

    def _finish(self, watch: JobMonitor, line: Channel, on_over: Callable[[], None]) -> None:
        """What is left after the sampling. Whatever is wrong with the child, the main thread replaces it."""
        job, execution_id = watch.job, watch.execution_id
        with log_context(video_id=job.id, execution_id=execution_id):
            try:
                outcome = watch.finish(line)
            except ChildDied as e:
                outcome = _died(job, e)
            if watch.is_stuck or (isinstance(outcome, Failed) and outcome.is_broken):
                line.kill()
            if self._end(job, execution_id, outcome, watch.is_draining):
                on_over()

    def _start(self, job_id: str, execution_id: str) -> Job | None:
        try:
            return self.store.start(job_id, execution_id)
        except ValueError:
            log.exception("the record of %s cannot be read", job_id)
            self.store.fail(job_id, None, RECORD_DAMAGED)
            return None

    def _outcome(self, watch: JobMonitor) -> Done | Failed | Halt | Sampled:
        """A child that is of no use any more is gone when this returns."""
        has_died = False
        try:
            outcome = watch.outcome()
        except ChildDied as e:
            has_died, outcome = True, _died(watch.job, e)
        if watch.is_stuck or (isinstance(outcome, Failed) and outcome.is_broken):
            self._let_finish(watch)
        elif not has_died:
            return outcome
        self.child.kill()
        return outcome

    def _let_finish(self, watch: JobMonitor) -> None:
        """The job before this one may be on its way to the storage, and is not to blame."""
        until = time.monotonic() + self.settings.stop_grace_s
        watch.wait_until(lambda seconds: self.finishing.is_free(seconds) or time.monotonic() > until)

    def _end(self, job: Job, execution_id: str, outcome: Done | Failed | Halt, is_draining: Callable[[], bool]) -> bool:
        self._patiently(lambda: self._settle(job, execution_id, outcome), is_draining)
        return self._is_over(job.id, execution_id)

    def _settle(self, job: Job, execution_id: str, outcome: Done | Failed | Halt) -> None:
        match outcome:
            case Done(output, timings, peak_memory_mb):
                kept = self.store.complete(job.id, execution_id, output, timings, peak_memory_mb)
                log.info("%s %s, %.1f s", job.id, "completed" if kept else "was lost", sum(timings.values()))
                if kept:
                    self.store.record_duration(job.generation.model, sum(timings.values()))
                else:
                    self.on_lost()
                self._forget_checkpoint(job, kept)
            case Failed(code, text, can_retry):
                if can_retry and job.attempt < self.settings.max_attempts:
                    self.store.requeue(job, execution_id)
                else:
                    kept = self.store.fail(job.id, execution_id, JobError(code=code, message=text))
                    self._forget_checkpoint(job, kept)
            case Halt.CANCELLED:
                self._forget_checkpoint(job, self.store.finish_cancel(job.id, execution_id))
            case Halt.DRAINED:
                log.info("%s goes back to the queue: this worker is stopping", job.id)
                self.store.requeue(job, execution_id, counts_as_attempt=False)
            case Halt.TIMED_OUT:
                text = f"The job took longer than {self.settings.job_timeout_s} s."
                kept = self.store.fail(job.id, execution_id, JobError(code="timeout", message=text))
                self._forget_checkpoint(job, kept)
            case Halt.LOST:
                self.on_lost()
                log.warning("%s was lost by execution %s", job.id, execution_id)
            case _:
                assert_never(outcome)

    def _patiently(self, do: Callable[[], T], is_draining: Callable[[], bool]) -> T:
        """Retry while Redis is away: what was worked out is worth waiting. Raises RedisError when patience is over."""
        began = time.monotonic()
        while True:
            try:
                return do()
            except RedisError as e:
                settings = self.settings
                patience_s = settings.stop_grace_s if is_draining() else settings.commit_patience_s
                if time.monotonic() - began > patience_s:
                    raise
                log.warning("the end of a job waits for Redis: %s", type(e).__name__)
                self.heartbeat_file.beat()
                time.sleep(settings.redis_retry_s)

    def _forget_checkpoint(self, job: Job, is_ours: bool) -> None:
        """As soon as the job is over; what stays behind here is the maintenance's to find."""
        if not is_ours:
            return
        try:
            self.storage.delete(object_keys.checkpoint(job.id))
        except StorageError as e:
            log.warning("%s: its checkpoint stays for now: %s", job.id, e)

    def _is_over(self, job_id: str, execution_id: str) -> bool:
        """Then its files on scratch are removed: committed, or of no use to anybody. Another execution needs them."""
        try:
            job = self.store.get(job_id)
        except ValueError:
            return False
        is_over = job is None or job.state.is_terminal
        if is_over:
            self.scratch.discard(job_id, execution_id)
        return is_over


def _died(job: Job, e: ChildDied) -> Failed:
    log.error("%s: %s", job.id, e)
    return Failed(WORKER_LOST.code, WORKER_LOST.message, can_retry=True)
