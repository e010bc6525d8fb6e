"""`python -m tests.page.worker` runs a real worker, parent and child, with the engine of tests/drawing_engine.py."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from service.process.heartbeat_file import HeartbeatFile
from service.process.startup import start_process
from service.settings import Settings
from service.wiring import open_services
from tests.drawing_engine import DrawingEngine
from worker.__main__ import work
from worker.child.main import start
from worker.parent.child_process import ChildProcess
from worker.parent.metrics import WorkerMetrics


def enter(control: Connection, settings: Settings, model: str) -> None:
    start(control, settings, DrawingEngine)  # type: ignore[arg-type]


def main() -> int:
    settings = start_process()
    child = ChildProcess(settings, "demo", enter)
    return work(open_services(settings), "demo", child, WorkerMetrics(), HeartbeatFile(settings.pulse_file))


if __name__ == "__main__":
    sys.exit(main())
