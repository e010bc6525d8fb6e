"""`python -m worker [model]`: load the models, then work until SIGTERM. Exits 1 if the models do not load."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

from redis.exceptions import RedisError

from service.errors import ServiceError
from service.lifeline import end_with_supervisor
from service.logs import configure_logs
from service.settings import load_settings
from service.wiring import check_storage, open_redis, open_services
from worker import tasks
from worker.metrics import MeasuredChild, WorkerMetrics
from worker.resident import ChildDied, Resident
from worker.rq_worker import ResidentWorker
from worker.runner import Runner
from worker.scratch import Scratch

log = logging.getLogger("ivmix.worker")


def main() -> int:
    end_with_supervisor()
    try:
        settings = load_settings()
        configure_logs(settings.log_format)
        services = open_services(settings)
        check_storage(services.storage)
        model = services.models.get(sys.argv[1] if len(sys.argv) > 1 else None).id
        metrics = WorkerMetrics()
        if settings.worker_metrics_port is not None:
            log.info("metrics on port %d", metrics.serve(settings.host, settings.worker_metrics_port))
    except ServiceError as e:
        sys.exit(f"ivmix: {e}")
    for number in (signal.SIGINT, signal.SIGTERM):  # while the models load; RQ takes the signals over in work()
        signal.signal(number, _leave)
    child = MeasuredChild(Resident(settings, model), metrics)
    try:
        child.ensure()
        assert settings.redis_url is not None  # open_services refuses to go on without
        worker = ResidentWorker(open_redis(settings.redis_url, reply_timeout_s=None), model)
        scratch = Scratch(settings.scratch_folder)
        runner = Runner(services.store, child, scratch, settings.stall_timeout_s, settings.job_timeout_s)
        tasks.install(runner, worker)
        worker.work(logging_level="WARNING")
        return 0
    except RedisError as e:
        log.error("Redis is away: %s", type(e).__name__)
        return 1
    except ChildDied as e:
        log.error("the models of %s did not load: %s", model, e)
        return 1
    finally:
        child.kill()


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
