"""Runs the API server: `python -m service.api`, configured by IVMIX_... variables."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from fastapi import FastAPI

from service.api.app import create_app, create_operations_app
from service.api.server import BoundedServer
from service.errors import ConfigurationError
from service.log_config import configure_logging
from service.process.parent_watch import end_with_supervisor
from service.settings import load_settings
from service.wiring import check_storage, open_services

OPERATIONS_CONNECTIONS = 32  # probes and Prometheus


def main() -> None:
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logging(settings.log_format)
        services = open_services(settings)
        app = create_app(services)
        check_storage(services.storage)
    except ConfigurationError as e:
        sys.exit(f"ivmix: {e.message}")
    try:
        if settings.metrics_port is not None:
            operations = BoundedServer(
                create_operations_app(app), settings, settings.metrics_port, max_connections=OPERATIONS_CONNECTIONS
            )
            sockets = [operations.config.bind_socket()]  # in this thread: a port in use must end the process
            threading.Thread(target=operations.run, args=(sockets,), daemon=True).start()
        server = Server(app, settings, settings.port)
        server.app = app
        server.run()
        if not server.started:
            sys.exit(3)  # uvicorn's exit code for a failed start
    finally:
        services.close()


class Server(BoundedServer):
    """Signals the application to stop, so that long-lived requests end before the graceful shutdown times out."""

    app: FastAPI

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.open_requests.stopping.set()
        super().handle_exit(sig, frame)


if __name__ == "__main__":
    main()
