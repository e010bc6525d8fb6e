"""OpenTelemetry traces over OTLP/HTTP, off unless IVMIX_OTLP_ENDPOINT is set. One trace follows a video: the request,
the queue, every execution with its phases and storage calls, and the webhooks.

The request's context is stored with the job as a W3C `traceparent`, so that processes need nothing in common but Redis.
The libraries are those of the extra `otel`; they are imported when tracing is on. No span contains a prompt, a key or a
URL's path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from service.errors import ConfigurationError

log = logging.getLogger("ivmix.tracing")

Kind = Literal["internal", "server", "client", "consumer"]
Attributes = Mapping[str, str | int | float | bool]

FLUSH_MS = 3000  # how long a process that ends waits for the receiver
PATH = "/v1/traces"

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """That of the request which is being answered; None without tracing."""
    return _current.get()


class Span:
    """A span that has begun. Without tracing all methods do nothing."""

    def __init__(self, span: Any = None) -> None:  # Any: the library may not be installed
        self._span = span

    @property
    def traceparent(self) -> str | None:
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self, at: float | None = None) -> None:
        """
        Args:
            at: unix time; now if None.
        """
        if self._span is not None:
            self._span.end(None if at is None else int(at * 1e9))


class Tracing:
    """
    Args:
        endpoint: base URL of an OTLP/HTTP receiver; None: no tracing.
        process: what this process is, part of `service.name`.

    Raises:
        ConfigurationError: the libraries are missing.
    """

    def __init__(self, endpoint: str | None = None, process: str = "") -> None:
        self._provider = None if endpoint is None else _provider(endpoint, process)

    @property
    def is_on(self) -> bool:
        return self._provider is not None

    def start(
        self,
        name: str,
        *,
        parent: str | None = None,
        kind: Kind = "internal",
        at: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Begin a span; the caller ends it.

        Args:
            parent: `traceparent` of the span that it belongs to; None or nonsense: a new trace.
            at: unix time; now if None.
        """
        if self._provider is None:
            return Span()
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent or ""}, Context())
        tracer: Any = self._provider.get_tracer("ivmix")
        start_ns = None if at is None else int(at * 1e9)
        found = tracer.start_span(
            name, context, SpanKind[kind.upper()], attributes=dict(attributes or {}), start_time=start_ns
        )
        return Span(found)

    @contextmanager
    def span(
        self, name: str, *, parent: str | None = None, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> Generator[Span]:
        """A span that is the current one inside; an exception fails it."""
        span = self.start(name, parent=parent, kind=kind, attributes=attributes)
        token = _current.set(span.traceparent)
        try:
            yield span
        except Exception as e:
            span.fail(type(e).__name__)
            raise
        finally:
            _current.reset(token)
            span.end()

    def close(self) -> None:
        """Send what has ended, for a few seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(FLUSH_MS)
            self._provider.shutdown()


NO_TRACING = Tracing()


def traces_url(endpoint: str) -> str:
    """Where spans are sent to."""
    url = endpoint.rstrip("/")
    return url if url.endswith(PATH) else url + PATH


def receiver_headers() -> dict[str, str]:
    """What OpenTelemetry's own variables add to requests to the receiver, such as a token; needs its libraries."""
    from opentelemetry.util.re import parse_env_headers

    names = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict(parse_env_headers(given, liberal=True))


def _provider(endpoint: str, process: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        raise ConfigurationError(
            f"IVMIX_OTLP_ENDPOINT is set, and {e.name} is missing: pip install 'ivmix[otel]', or unset it"
        ) from e
    name = f"ivmix-{process}" if process else "ivmix"
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
