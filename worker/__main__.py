"""`python -m worker [model]`: load the models, then work until SIGTERM. Exits with 1 if the models do not load."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

from redis.exceptions import RedisError

from service.log_config import ONCE_A_MINUTE
from service.process.data_folder import prepare_folder
from service.process.heartbeat_file import HeartbeatFile
from service.process.readiness import report_ready
from service.process.startup import one_sentence_errors, prepare_data_folder, start_process
from service.redis_connection.client import open_redis
from service.redis_connection.wait import require_not_refused, wait_for_redis
from service.wiring import Services, check_storage, open_services
from worker.parent.child_process import Child, ChildDied, ChildProcess
from worker.parent.job_runner import Runner
from worker.parent.metrics import WorkerMetrics
from worker.parent.rq_worker import GenerationWorker
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")

RECONNECT_S = 1.0  # between connection attempts while Redis is unreachable


def main() -> int:
    with one_sentence_errors():
        settings = start_process()
        prepare_data_folder(settings)
        prepare_folder(settings.scratch_folder, "IVMIX_SCRATCH_DIR")
        services = open_services(settings)
        require_not_refused(services.redis_url)
        check_storage(services.storage)
        model = services.models.get(sys.argv[1] if len(sys.argv) > 1 else None).id
        heartbeat_file = HeartbeatFile(settings.pulse_file)
        metrics = WorkerMetrics()
        if settings.worker_metrics_port is not None:
            log.info("metrics on port %d", metrics.serve(settings.host, settings.worker_metrics_port))
    return work(services, model, ChildProcess(settings, model), metrics, heartbeat_file)


def work(services: Services, model: str, child: Child, metrics: WorkerMetrics, heartbeat_file: HeartbeatFile) -> int:
    """Work until a signal, and return the exit status. The heartbeat starts when the models are loaded."""
    for number in (signal.SIGINT, signal.SIGTERM):  # while the models load there is no job to requeue
        signal.signal(number, _exit_at_once)
    try:
        child.ensure(lambda: True)
        report_ready(model, child.device)
        settings = services.settings
        scratch = Scratch(settings.scratch_folder)
        runner = Runner(services.store, services.storage, child, scratch, settings, metrics, heartbeat_file)
        _work_until_stopped(services, model, runner, heartbeat_file)
        runner.background.close()
        return 0
    except ChildDied as e:
        log.error("cannot load the models of %s: %s", model, e)
        return 1
    finally:
        child.kill()


def _work_until_stopped(services: Services, model: str, runner: Runner, heartbeat_file: HeartbeatFile) -> None:
    """RQ's loop ends when Redis is unreachable; start a new one and keep the models loaded."""
    stopping = threading.Event()
    with one_sentence_errors():
        wait_for_redis(services.redis_url, stopping, heartbeat_file.beat)
    with open_redis(services.redis_url, reply_timeout_s=None) as redis:
        while not stopping.is_set():
            heartbeat_file.beat()
            try:
                GenerationWorker(redis, model, runner, stopping, heartbeat_file).work(logging_level="WARNING")
            except RedisError as e:
                log.error("Redis is unreachable: %s", type(e).__name__, extra=ONCE_A_MINUTE)
            stopping.wait(RECONNECT_S)


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
