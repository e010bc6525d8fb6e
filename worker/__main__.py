"""`python -m worker [model] [--gpus N]`: load the models, then work until SIGTERM. Models that do not load are tried
again."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from redis.exceptions import RedisError

from service.errors import ConfigurationError
from service.jobs.model_loads import ModelLoads
from service.log_config import ONCE_A_MINUTE
from service.process.data_folder import prepare_folder
from service.process.heartbeat_file import HeartbeatFile
from service.process.startup import one_sentence_errors, prepare_data_folder, start_process
from service.redis_connection.client import open_redis
from service.redis_connection.wait import require_not_refused, wait_for_redis
from service.wiring import Services, check_storage, open_services
from worker.messages import Processes
from worker.parent.child_process import Child, ChildProcess
from worker.parent.job_runner import Runner
from worker.parent.metrics import WorkerMetrics
from worker.parent.model_loader import ModelLoader
from worker.parent.rq_worker import GenerationWorker
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")

SPLITS = (1, 2, 4)  # over so many processes a clip can be split
RECONNECT_S = 1.0  # between connection attempts while Redis is unreachable


def main() -> int:
    given = _arguments()
    with one_sentence_errors():
        processes = processes_of(given.gpus, given.cpu_processes)
        settings = start_process()
        prepare_data_folder(settings)
        prepare_folder(settings.scratch_folder, "IVMIX_SCRATCH_DIR")
        services = open_services(settings, "worker")
        require_not_refused(services.redis_url)
        check_storage(services.storage)
        model = services.models.get(given.model).id
        heartbeat_file = HeartbeatFile.of_process(settings.pulse_file)
        metrics = WorkerMetrics()
        if settings.worker_metrics_port is not None:
            log.info("metrics on port %d", metrics.serve(settings.host, settings.worker_metrics_port))
    child = ChildProcess(settings, model, processes=processes)
    return work(services, model, child, metrics, heartbeat_file)


def processes_of(gpus: int, cpu_processes: int) -> Processes:
    """Raises ConfigurationError if a clip cannot be split over so many."""
    for name, count in (("--gpus", gpus), ("--cpu-processes", cpu_processes)):
        if count not in SPLITS:
            raise ConfigurationError(f"{name} {count}: one clip can be split over 2 or 4, or over none (1)")
    if gpus > 1 and cpu_processes > 1:
        raise ConfigurationError(f"--gpus {gpus} and --cpu-processes {cpu_processes}: give one of them")
    return Processes(max(gpus, cpu_processes), on_cpu=cpu_processes > 1)


def work(services: Services, model: str, child: Child, metrics: WorkerMetrics, heartbeat_file: HeartbeatFile) -> int:
    """Work until a signal, and return the exit status. Whenever the child has ended, load the models again."""
    stopping = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):  # RQ's handlers, which replace these, set the same event
        signal.signal(number, request_stop)
    settings, files = services.settings, _files(services, model)
    loader = ModelLoader(child, model, ModelLoads(services.probe), metrics, heartbeat_file, stopping, files)
    scratch = Scratch(settings.scratch_folder)
    runner = Runner(
        services.store, services.storage, child, scratch, settings, metrics, heartbeat_file, tracing=services.tracing
    )
    try:
        is_loaded = loader.load()
        if is_loaded:
            with one_sentence_errors():
                wait_for_redis(services.redis_url, stopping, heartbeat_file.beat)
        while is_loaded:
            _take_jobs(services, model, runner, stopping)
            is_loaded = loader.load()
        runner.background.close()
        services.tracing.close()
        return 0
    finally:
        child.kill()


def _take_jobs(services: Services, model: str, runner: Runner, stopping: threading.Event) -> None:
    """RQ's loop ends when Redis is unreachable; start a new one and keep the models loaded."""
    with open_redis(services.redis_url, reply_timeout_s=None) as redis:
        while not stopping.is_set() and runner.child.is_loaded:
            runner.heartbeat_file.beat()
            try:
                GenerationWorker(redis, model, runner, stopping, runner.heartbeat_file).work(logging_level="WARNING")
            except RedisError as e:
                log.error("Redis is unreachable: %s", type(e).__name__, extra=ONCE_A_MINUTE)
            if runner.child.is_loaded:
                stopping.wait(RECONNECT_S)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ivmix worker")
    parser.add_argument("model", nargs="?")
    for name in ("--gpus", "--cpu-processes"):
        parser.add_argument(name, type=int, default=1)
    return parser.parse_args()


def _files(services: Services, model: str) -> list[Path]:
    components = services.models.get(model).all_components.values()
    return [services.settings.models_file, *(part.path for part in components if part.path is not None)]


if __name__ == "__main__":
    sys.exit(main())
