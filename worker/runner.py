"""One job as the parent sees it: take it, watch the child work on it, write down how it ended.

Every write is a compare-and-set on the execution id, so a parent that lost its job changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from service.jobs import Job, JobError
from service.logs import about
from service.store import JobStore, Verdict
from worker.messages import Cancel, Done, Failed, Message, Progress, Ready, Run, Stopped
from worker.resident import Child, ChildDied
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")

MAX_ATTEMPTS = 3  # a job that kills its worker must not do so for ever
POLL_S = 0.5  # how often a silent child is looked at: bounds how late cancel and drain are noticed
CANCEL_GRACE_S = 20.0  # one step of the largest model; after that the child is killed


class Ending(StrEnum):
    """What RQ should do with its entry."""

    OVER = "over"
    AGAIN = "again"


@dataclass(frozen=True)
class Runner:
    """`beat` keeps RQ's lease on the job; `is_draining` says whether this worker is to stop."""

    store: JobStore
    child: Child
    scratch: Scratch
    stall_timeout_s: float
    job_timeout_s: float

    def run(
        self, job_id: str, execution_id: str, *, beat: Callable[[], None], is_draining: Callable[[], bool]
    ) -> Ending:
        with about(video_id=job_id, execution_id=execution_id):
            ending = self._run(job_id, execution_id, beat, is_draining)
        if ending is Ending.OVER:  # committed, or of no use to anybody; a job that comes again may need its files
            self.scratch.discard(job_id, execution_id)
        return ending

    def _run(self, job_id: str, execution_id: str, beat: Callable[[], None], is_draining: Callable[[], bool]) -> Ending:
        job = self.store.start(job_id, execution_id)
        if job is None:
            log.info("%s is not waiting any more", job_id)
            return Ending.OVER
        log.info("%s started, attempt %d, execution %s", job_id, job.attempt, execution_id)
        try:
            self.child.ensure(beat)
            self.child.send(Run(job, execution_id))
            return self._watch(job, execution_id, beat, is_draining)
        except ChildDied as e:
            log.error("%s: %s", job_id, e)
            self.child.kill()
            return self._again_or_fail(
                job, execution_id, "worker_lost", "The worker process died several times on this job."
            )

    def _watch(self, job: Job, execution_id: str, beat: Callable[[], None], is_draining: Callable[[], bool]) -> Ending:
        began = last_sign = time.monotonic()
        stop_sent: float | None = None
        stop_because: Verdict | None = None  # None while stopping means: drain
        while True:
            beat()
            message = self.child.receive(POLL_S)
            now = time.monotonic()
            if isinstance(message, Progress):
                last_sign = now
                verdict = self.store.progress(job.id, execution_id, message.step, message.total, message.phase)
            elif message is not None:
                return self._end(job, execution_id, message, stop_because)
            else:
                verdict = self._verdict(job, execution_id)
            stopping = verdict is not Verdict.CONTINUE or is_draining()
            if stopping and stop_sent is None:
                stop_because = None if verdict is Verdict.CONTINUE else verdict
                self.child.send(Cancel(execution_id))
                stop_sent = now
            if stop_sent is not None and now - stop_sent > CANCEL_GRACE_S:
                self.child.kill()
                return self._end(job, execution_id, Stopped(), stop_because)
            if now - began > self.job_timeout_s:
                return self._give_up(
                    job, execution_id, "timeout", f"The job took longer than {self.job_timeout_s:.0f} s."
                )
            if now - last_sign > self.stall_timeout_s:
                raise ChildDied(f"no step for {self.stall_timeout_s:.0f} s")

    def _verdict(self, job: Job, execution_id: str) -> Verdict:
        """Between two steps nothing is written; only asked."""
        current = self.store.get(job.id)
        if current is None or current.execution_id != execution_id or current.state.is_terminal:
            return Verdict.LOST
        return Verdict.CANCEL if current.cancel_requested else Verdict.CONTINUE

    def _end(self, job: Job, execution_id: str, message: Message, stop_because: Verdict | None) -> Ending:
        match message:
            case Done(output, timings, peak_memory_mb):
                kept = self.store.complete(job.id, execution_id, output, timings, peak_memory_mb)
                log.info("%s %s, %.1f s", job.id, "completed" if kept else "was lost", sum(timings.values()))
                if kept:
                    self.store.note_finished(job.generation.model, sum(timings.values()))
                return Ending.OVER
            case Failed(code, text, can_retry):
                if can_retry:
                    return self._again_or_fail(job, execution_id, code, text)
                self.store.fail(job.id, execution_id, JobError(code=code, message=text))
                return Ending.OVER
            case Stopped():
                if stop_because is Verdict.CANCEL:
                    self.store.finish_cancel(job.id, execution_id)
                    return Ending.OVER
                if stop_because is Verdict.LOST:
                    return Ending.OVER
                log.info("%s goes back to the queue: this worker is stopping", job.id)
                return Ending.AGAIN if self.store.requeue(job.id, execution_id) else Ending.OVER
            case Ready() | Progress():
                raise ChildDied(f"the child said {message} out of turn")
            case _:
                assert_never(message)

    def _again_or_fail(self, job: Job, execution_id: str, code: str, text: str) -> Ending:
        if job.attempt < MAX_ATTEMPTS:
            return Ending.AGAIN if self.store.requeue(job.id, execution_id) else Ending.OVER
        self.store.fail(job.id, execution_id, JobError(code=code, message=text))
        return Ending.OVER

    def _give_up(self, job: Job, execution_id: str, code: str, text: str) -> Ending:
        self.child.kill()
        self.store.fail(job.id, execution_id, JobError(code=code, message=text))
        return Ending.OVER
