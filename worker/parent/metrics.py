"""Prometheus metrics of one worker, derived from the messages between parent and child and served by the parent.

docs/operations.md documents every metric; a test compares the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.jobs.model import Phase
from service.process.metrics_server import serve_metrics
from service.storage.metrics import StorageCall, StorageMetrics
from worker.messages import Done, Failed, Message, Order, Progress, Run, Sampled, Stopped
from worker.parent.child_process import Channel, Child, ChildDied

PHASE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
GAP_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class WorkerMetrics:
    """One registry per worker: nothing global."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.storage = StorageMetrics(self.registry)
        self._now = now
        self._step = 0
        self._ended_at: float | None = None
        self._executions = Counter(
            "ivmix_worker_executions", "Executions by outcome", ("model", "outcome"), registry=self.registry
        )
        self._phases = Histogram(
            "ivmix_worker_phase_seconds",
            "Duration of each phase of completed jobs",
            ("model", "phase"),
            buckets=PHASE_BUCKETS_S,
            registry=self.registry,
        )
        self._gap = Histogram(
            "ivmix_worker_gap_seconds",
            "Idle time of the networks between two jobs",
            buckets=GAP_BUCKETS_S,
            registry=self.registry,
        )
        self._steps = Counter("ivmix_worker_steps", "Finished sampling steps", ("model",), registry=self.registry)
        self._executing = set[str]()
        busy = Gauge("ivmix_worker_busy", "Whether a job is running", registry=self.registry)
        busy.set_function(lambda: float(bool(self._executing)))
        self._lost = Counter("ivmix_worker_leases_lost", "Jobs taken over by another worker", registry=self.registry)
        self._peak = Gauge(
            "ivmix_worker_peak_memory_bytes", "Peak memory of the last completed job", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def begin(self, run: Run) -> None:
        if self._ended_at is not None:
            self._gap.observe(self._now() - self._ended_at)
        self._step = 0
        self._executing.add(run.execution_id)

    def progress(self, run: Run, progress: Progress) -> None:
        """The first step count of a resumed job includes the steps of earlier executions."""
        if progress.phase is not Phase.SAMPLING:
            return
        if self._step:
            self._steps.labels(run.generation.model).inc(max(0, progress.step - self._step))
        elif progress.step == 1:
            self._steps.labels(run.generation.model).inc()
        self._step = max(self._step, progress.step)

    def release(self) -> None:
        """The networks are idle."""
        self._ended_at = self._now()

    def finish(self, run: Run, done: Done) -> None:
        for phase, seconds in done.timings.items():
            self._phases.labels(run.generation.model, str(phase)).observe(seconds)
        if done.peak_memory_mb is not None:
            self._peak.set(done.peak_memory_mb * 2**20)
        self.end(run, "completed")

    def end(self, run: Run, outcome: str) -> None:
        self._executions.labels(run.generation.model, outcome).inc()
        self._executing.discard(run.execution_id)

    def lost(self) -> None:
        self._lost.inc()

    def serve(self, host: str, port: int) -> int:
        """Serve the metrics and return the port. Raises ConfigurationError if it is in use."""
        return serve_metrics(self.registry, host, port, "WORKER_METRICS_PORT")


class MeasuredChannel:
    """A channel that counts its messages. StorageCall messages are recorded and not passed on."""

    def __init__(self, channel: Channel, metrics: WorkerMetrics, run: Run | None = None) -> None:
        self._channel, self._metrics, self._run = channel, metrics, run

    def send(self, message: Order) -> None:
        self._channel.send(message)

    def receive(self, timeout_s: float) -> Message | None:
        until = time.monotonic() + timeout_s
        try:
            message = cast(Message | StorageCall | None, self._channel.receive(timeout_s))
            while isinstance(message, StorageCall):  # None would mean a silent child
                self._metrics.storage.observe(message)
                message = cast(Message | StorageCall | None, self._channel.receive(max(0.0, until - time.monotonic())))
        except ChildDied:
            self._end("died")
            raise
        if self._run is not None:
            self._count(self._run, message)
        return message

    def kill(self) -> None:
        """A job that is still running hung, timed out or did not stop in time."""
        self._end("killed")
        self._channel.kill()

    def _count(self, run: Run, message: Message | None) -> None:
        match message:
            case Progress():
                self._metrics.progress(run, message)
            case Done():
                self._run = None
                self._metrics.finish(run, message)
            case Failed():
                self._end(message.code)
            case Stopped():
                self._end("stopped")
            case _:
                pass

    def _end(self, outcome: str) -> None:
        if self._run is not None:
            self._metrics.end(self._run, outcome)
        self._run = None


class MeasuredChild(MeasuredChannel):
    def __init__(self, child: Child, metrics: WorkerMetrics) -> None:
        super().__init__(child, metrics)
        self._child = child

    def ensure(self, beat: Callable[[], None]) -> None:
        self._child.ensure(beat)

    def send(self, message: Order) -> None:
        if isinstance(message, Run):
            self._run = message
            self._metrics.begin(message)
        try:
            super().send(message)
        except ChildDied:
            self._end("died")
            raise

    def second(self) -> Channel:
        """The channel on which the rest of the job sampled last is counted."""
        run, self._run = self._run, None
        return MeasuredChannel(self._child.second(), self._metrics, run)

    def _count(self, run: Run, message: Message | None) -> None:
        if isinstance(message, Sampled | Done):
            self._metrics.release()
        super()._count(run, message)

    def _end(self, outcome: str) -> None:
        if self._run is not None:
            self._metrics.release()
        super()._end(outcome)
