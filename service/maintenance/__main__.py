"""The maintenance process: `python -m service.maintenance`, configured by IVMIX_ variables; SIGTERM stops it."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from service.maintenance.index_builder import IndexBuilder
from service.maintenance.leader import MaintenanceLeader, PeriodicTask
from service.maintenance.lost_job_reaper import LostJobReaper
from service.maintenance.retention import Retention
from service.maintenance.rq_housekeeping import clean_registries
from service.maintenance.unavailable_models import UnavailableModels
from service.process.heartbeat_file import HeartbeatFile
from service.process.startup import one_sentence_errors, prepare_data_folder, start_process
from service.redis_connection.wait import wait_for_redis
from service.wiring import Services, open_services


def periodic_tasks(services: Services) -> list[PeriodicTask]:
    """Return all tasks of the maintenance."""
    settings = services.settings
    retention = Retention(
        services.redis,
        services.store,
        services.storage,
        retention_s=settings.retention_seconds,
        tidy_after_s=2 * settings.lease_s,
    )
    reaper = LostJobReaper(
        services.redis,
        services.store,
        retention,
        # A lost worker is noticed within lease_s + beat_s. At least two seconds, because after an outage of Redis a
        # worker renews its lease only with redis-py's next attempt.
        grace_s=max(settings.beat_s / 2, 2.0),
        max_attempts=settings.max_attempts,
    )
    unavailable = UnavailableModels(services.redis, services.store, services.loads)
    return [
        PeriodicTask("lost jobs", settings.look_s, reaper.run_once),
        PeriodicTask("unavailable models", settings.look_s, unavailable.run_once),
        PeriodicTask("list indexes", settings.look_s, IndexBuilder(services.redis, services.store).run_once),
        PeriodicTask("ended jobs", settings.look_s * 5, retention.run_once),
        PeriodicTask("incomplete uploads", 3600.0, lambda: services.storage.clean(older_than_s=86400.0)),
        PeriodicTask("references without a video", 600.0, services.references.sweep),
        PeriodicTask("RQ registries", 600.0, lambda: clean_registries(services.redis)),
    ]


def main() -> int:
    stopping = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    with one_sentence_errors():
        settings = start_process()
        prepare_data_folder(settings)
        services = open_services(settings, "maintenance")
        heartbeat_file = HeartbeatFile.of_process(settings.pulse_file)
        wait_for_redis(services.redis_url, stopping, heartbeat_file.beat)
    MaintenanceLeader(services.redis, periodic_tasks(services), heartbeat_file).run(stopping)
    services.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
