"""The figures of one worker for Prometheus, read off what parent and child say to each other. The parent serves them.

Names and meanings of all figures are in README.md, "Metrics"; a test holds the two equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.jobs import Phase
from service.metrics import StorageCall, StorageMetrics, serve_metrics
from worker.messages import Done, Failed, Message, Order, Progress, Run, Stopped
from worker.resident import Child, ChildDied

PHASE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
GAP_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class WorkerMetrics:
    """One registry per worker: nothing global."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.storage = StorageMetrics(self.registry)
        self._now = now
        self._running: Run | None = None
        self._step = 0
        self._ended_at: float | None = None
        self._executions = Counter(
            "ivmix_worker_executions", "Jobs worked on, by how it ended", ("model", "outcome"), registry=self.registry
        )
        self._phases = Histogram(
            "ivmix_worker_phase_seconds",
            "Of finished jobs",
            ("model", "phase"),
            buckets=PHASE_BUCKETS_S,
            registry=self.registry,
        )
        self._gap = Histogram(
            "ivmix_worker_gap_seconds", "Between two jobs", buckets=GAP_BUCKETS_S, registry=self.registry
        )
        self._steps = Counter("ivmix_worker_steps", "Finished sampling steps", ("model",), registry=self.registry)
        self._is_busy = Gauge("ivmix_worker_busy", "Whether a job is worked on", registry=self.registry)
        self._lost = Counter("ivmix_worker_leases_lost", "Jobs that went to somebody else", registry=self.registry)
        self._peak = Gauge("ivmix_worker_peak_memory_bytes", "Of the last finished job", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def begin(self, run: Run) -> None:
        if self._ended_at is not None:
            self._gap.observe(self._now() - self._ended_at)
        self._running, self._step = run, 0
        self._is_busy.set(1)

    def progress(self, progress: Progress) -> None:
        """A job that goes on where another worker stopped begins with more than one step."""
        if self._running is None or progress.phase is not Phase.SAMPLING:
            return
        if self._step:
            self._steps.labels(self._running.generation.model).inc(max(0, progress.step - self._step))
        elif progress.step == 1:
            self._steps.labels(self._running.generation.model).inc()
        self._step = max(self._step, progress.step)

    def finish(self, done: Done) -> None:
        if self._running is None:
            return
        for phase, seconds in done.timings.items():
            self._phases.labels(self._running.generation.model, str(phase)).observe(seconds)
        if done.peak_memory_mb is not None:
            self._peak.set(done.peak_memory_mb * 2**20)
        self.end("completed")

    def end(self, outcome: str) -> None:
        """Nothing if no job is worked on."""
        if self._running is None:
            return
        self._executions.labels(self._running.generation.model, outcome).inc()
        self._running, self._ended_at = None, self._now()
        self._is_busy.set(0)

    def lost(self) -> None:
        self._lost.inc()

    def serve(self, host: str, port: int) -> int:
        """The port. Raises ConfigurationError if it is taken."""
        return serve_metrics(self.registry, host, port, "WORKER_METRICS_PORT")


class MeasuredChild:
    """A child whose words are counted on their way; everything is passed on but what is said to us alone."""

    def __init__(self, child: Child, metrics: WorkerMetrics) -> None:
        self._child, self._metrics = child, metrics

    def ensure(self, beat: Callable[[], None]) -> None:
        self._child.ensure(beat)

    def send(self, message: Order) -> None:
        if isinstance(message, Run):
            self._metrics.begin(message)
        try:
            self._child.send(message)
        except ChildDied:
            self._metrics.end("died")
            raise

    def receive(self, timeout_s: float) -> Message | None:
        until = time.monotonic() + timeout_s
        try:
            message = cast(Message | StorageCall | None, self._child.receive(timeout_s))
            while isinstance(message, StorageCall):  # None would mean a silent child
                self._metrics.storage.observe(message)
                message = cast(Message | StorageCall | None, self._child.receive(max(0.0, until - time.monotonic())))
        except ChildDied:
            self._metrics.end("died")
            raise
        match message:
            case Progress():
                self._metrics.progress(message)
            case Done():
                self._metrics.finish(message)
            case Failed():
                self._metrics.end(message.code)
            case Stopped():
                self._metrics.end("stopped")
            case _:
                pass
        return message

    def kill(self) -> None:
        """A job that is still worked on was hanging, took too long, or did not stop when asked to."""
        self._metrics.end("killed")
        self._child.kill()
