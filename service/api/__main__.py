"""Serve the API: python -m service.api, configured by IVMIX_... variables."""

from __future__ import annotations

import sys

import uvicorn

from service.api.app import create_app
from service.errors import ConfigurationError
from service.lifeline import end_with_supervisor
from service.logs import configure_logs
from service.settings import load_settings
from service.wiring import check_storage, open_services


def main() -> None:
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logs(settings.log_format)
        services = open_services(settings)
        app = create_app(services)
        check_storage(services.storage)
    except ConfigurationError as e:
        sys.exit(f"ivmix: {e.message}")
    try:
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,  # status polls would be all of it
            server_header=False,
            timeout_graceful_shutdown=20,
        )
    finally:
        services.close()


if __name__ == "__main__":
    main()
