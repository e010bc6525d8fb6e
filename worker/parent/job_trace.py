"""The spans of one execution: the time in the queue, the execution, its phases and its storage calls.

The parent makes them from what the child reports, so that the child, which works on the GPU, sends nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.jobs.model import Job, Phase
from service.storage.metrics import StorageCall
from service.tracing import NO_TRACING, Span, Tracing


@dataclass
class JobTrace:
    tracing: Tracing = NO_TRACING
    _execution: Span = field(default_factory=Span)
    _phase: Span = field(default_factory=Span)
    _name: Phase | None = None

    def begin(self, job: Job, execution_id: str) -> None:
        """The job has been taken from its queue. Only its first execution has a span of the queue."""
        names = {"ivmix.video_id": job.id, "ivmix.model": job.generation.model}
        if job.attempt <= 1:
            waited = self.tracing.start("queue", parent=job.traceparent, at=job.created_at, attributes=names)
            waited.end()
        names |= {"ivmix.execution_id": execution_id}
        self._execution = self.tracing.start("execution", parent=job.traceparent, kind="consumer", attributes=names)
        self._execution.set({"ivmix.attempt": job.attempt})

    def enter(self, phase: Phase) -> None:
        """A phase has begun, or goes on."""
        if phase is self._name or not self.tracing.is_on:
            return
        self._phase.end()
        self._name = phase
        self._phase = self.tracing.start(phase, parent=self._execution.traceparent)

    def storage_called(self, call: StorageCall) -> None:
        if not self.tracing.is_on:
            return
        now = time.time()
        parent = self._phase.traceparent or self._execution.traceparent
        span = self.tracing.start(f"storage {call.operation}", parent=parent, kind="client", at=now - call.seconds)
        if not call.is_ok:
            span.fail("failed")
        span.end(now)

    def end(self, outcome: str) -> None:
        self._phase.end()
        self._execution.set({"ivmix.outcome": outcome})
        if outcome not in ("completed", "stopped"):
            self._execution.fail(outcome)
        self._execution.end()
