from __future__ import annotations

from service.errors import ServiceError


class BenchmarkError(ServiceError):
    """A file, a protocol or a network cannot be used as asked. `ivmix bench` prints the message and exits with 1."""

    code = "benchmark_error"
