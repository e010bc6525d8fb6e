"""Prometheus metrics of one worker, counted in the parent, which serves them.

docs/operations.md documents every metric; a test compares the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.jobs.model import Phase
from service.process.metrics_server import serve_metrics
from service.storage.metrics import StorageMetrics
from worker.messages import Done, Progress

PHASE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
GAP_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class WorkerMetrics:
    """One registry per worker: nothing global."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.storage = StorageMetrics(self.registry)
        self._now = now
        self._step = 0
        self._idle_since: float | None = None
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
        self.load_failures = Gauge(
            "ivmix_worker_load_failures",
            "Attempts to load the models that failed since the last success",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def begin(self, execution_id: str) -> None:
        """The networks have a job."""
        if self._idle_since is not None:
            self._gap.observe(self._now() - self._idle_since)
        self._step = 0
        self._executing.add(execution_id)

    def progress(self, model: str, progress: Progress) -> None:
        """The first step count of a resumed job includes the steps of earlier executions."""
        if progress.phase is not Phase.SAMPLING:
            return
        if self._step:
            self._steps.labels(model).inc(max(0, progress.step - self._step))
        elif progress.step == 1:
            self._steps.labels(model).inc()
        self._step = max(self._step, progress.step)

    def networks_idle(self) -> None:
        self._idle_since = self._now()

    def completed(self, model: str, done: Done) -> None:
        for phase, seconds in done.timings.items():
            self._phases.labels(model, str(phase)).observe(seconds)
        if done.peak_memory_mb is not None:
            self._peak.set(done.peak_memory_mb * 2**20)

    def end(self, model: str, execution_id: str, outcome: str) -> None:
        """The job is over in this worker, or was never begun."""
        self._executions.labels(model, outcome).inc()
        self._executing.discard(execution_id)

    def lease_lost(self) -> None:
        self._lost.inc()

    def serve(self, host: str, port: int) -> int:
        """Serve the metrics and return the port. Raises ConfigurationError if it is in use."""
        return serve_metrics(self.registry, host, port, "WORKER_METRICS_PORT")
