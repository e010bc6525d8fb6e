"""Runs the API server: `python -m service.api`, configured by IVMIX_... variables."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress
from types import FrameType

from fastapi import FastAPI
from redis.exceptions import RedisError

from service.api.app import create_app, create_operations_app
from service.api.server import BoundedServer
from service.errors import ConfigurationError
from service.process.ports import bind_port
from service.process.startup import one_sentence_errors, prepare_data_folder, start_process
from service.redis_connection.wait import watch_redis
from service.settings import Settings
from service.settings_audit import note_settings
from service.wiring import check_storage, open_services

OPERATIONS_CONNECTIONS = 32  # probes and Prometheus


def main() -> None:
    with one_sentence_errors():
        settings = start_process()
        prepare_data_folder(settings)
        services = open_services(settings, "api")
        app = create_app(services)
        check_storage(services.storage)
        server = Server(app, settings, settings.port)
        server.app = app
        sockets = bind_port(settings.host, settings.port, "IVMIX_PORT")
        if settings.metrics_port is not None:
            _serve_operations(app, settings, settings.metrics_port)
        watch_redis(services.redis_url, server.refuse)
        with suppress(RedisError):  # noted by the next process that starts
            note_settings(services.probe, settings, services.signer)
    gc.freeze()  # what is loaded by now stays, so searching it for garbage is in vain
    gc.set_threshold(10_000)  # allocations between two searches; a poll makes hundreds (benchmarks.api_load)
    try:
        server.run(sockets)
        if server.refusal is not None:
            sys.exit(f"ivmix: {server.refusal}")
        if not server.started:
            sys.exit(3)  # uvicorn's exit code for a failed start
    finally:
        services.close()


def _serve_operations(app: FastAPI, settings: Settings, port: int) -> None:
    operations = BoundedServer(create_operations_app(app), settings, port, max_connections=OPERATIONS_CONNECTIONS)
    sockets = bind_port(settings.host, port, "IVMIX_METRICS_PORT")  # in this thread: a port in use must end the process
    threading.Thread(target=operations.run, args=(sockets,), daemon=True).start()


class Server(BoundedServer):
    """Signals the application to stop, so that long-lived requests end before the graceful shutdown times out."""

    app: FastAPI
    refusal: ConfigurationError | None = None

    def refuse(self, e: ConfigurationError) -> None:
        """Stop, because Redis has appeared and refuses us. May be called from any thread."""
        self.refusal = e
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.open_requests.stopping.set()
        super().handle_exit(sig, frame)


if __name__ == "__main__":
    main()
