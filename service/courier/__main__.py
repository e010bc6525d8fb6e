"""Deliver webhooks until SIGTERM: python -m service.courier, configured by IVMIX_... variables."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from service.courier.running import run
from service.errors import ConfigurationError
from service.lifeline import end_with_supervisor
from service.logs import configure_logs
from service.settings import load_settings
from service.wiring import open_services


def main() -> None:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logs(settings.log_format)
        services = open_services(settings)
    except ConfigurationError as e:
        sys.exit(f"ivmix: {e.message}")
    try:
        run(services, stopping)
    finally:
        services.close()


if __name__ == "__main__":
    main()
