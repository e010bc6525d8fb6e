"""Run a dispatcher until SIGTERM: `python -m service.webhook_dispatcher`, configured by IVMIX_ variables."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from service.process.heartbeat_file import HeartbeatFile
from service.process.metrics_server import serve_metrics
from service.process.startup import one_sentence_errors, start_process
from service.redis_connection.wait import wait_for_redis
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
    with one_sentence_errors():
        settings = start_process()
        services = open_services(settings, "webhooks")
        metrics = DispatcherMetrics()
        heartbeat_file = HeartbeatFile.of_process(settings.pulse_file)
        if settings.webhook_metrics_port is not None:
            port = serve_metrics(metrics.registry, settings.host, settings.webhook_metrics_port, "WEBHOOK_METRICS_PORT")
            log.info("metrics on port %d", port)
        wait_for_redis(services.redis_url, stopping, heartbeat_file.beat)
    try:
        run(services, stopping, metrics)
    finally:
        services.close()


if __name__ == "__main__":
    main()
