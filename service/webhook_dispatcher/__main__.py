"""Run a dispatcher until SIGTERM: `python -m service.webhook_dispatcher`, configured by IVMIX_ variables."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

from service.errors import ConfigurationError
from service.log_config import configure_logging
from service.process.metrics_server import serve_metrics
from service.process.parent_watch import end_with_supervisor
from service.settings import load_settings
from service.webhook_dispatcher.dispatcher import run
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.wiring import open_services

log = logging.getLogger("ivmix.webhooks")


def main() -> None:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logging(settings.log_format)
        services = open_services(settings)
        metrics = DispatcherMetrics()
        if settings.webhook_metrics_port is not None:
            port = serve_metrics(metrics.registry, settings.host, settings.webhook_metrics_port, "WEBHOOK_METRICS_PORT")
            log.info("metrics on port %d", port)
    except ConfigurationError as e:
        sys.exit(f"ivmix: {e.message}")
    try:
        run(services, stopping, metrics)
    finally:
        services.close()


if __name__ == "__main__":
    main()
