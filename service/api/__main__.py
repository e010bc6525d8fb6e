"""Runs the API server: `python -m service.api`, configured by IVMIX_... variables."""

from __future__ import annotations

import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.api.app import create_app, create_operations_app
from service.errors import ConfigurationError
from service.log_config import configure_logging
from service.process.parent_watch import end_with_supervisor
from service.settings import Settings, load_settings
from service.wiring import check_storage, open_services


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
            operations = _config(create_operations_app(app), settings, settings.metrics_port)
            sockets = [operations.bind_socket()]  # in this thread: a port in use must end the process
            thread = threading.Thread(target=uvicorn.Server(operations).run, args=(sockets,), daemon=True)
            thread.start()
        server = Server(_config(app, settings, settings.port))
        server.app = app
        server.run()
        if not server.started:
            sys.exit(3)  # uvicorn's exit code for a failed start
    finally:
        services.close()


def _config(app: FastAPI, settings: Settings, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        log_config=None,
        access_log=False,  # status polls would flood it
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=20,
    )


class Server(uvicorn.Server):
    """Signals the application to stop, so that long-lived requests end before the graceful shutdown times out."""

    app: FastAPI

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.open_requests.stopping.set()
        super().handle_exit(sig, frame)


if __name__ == "__main__":
    main()
