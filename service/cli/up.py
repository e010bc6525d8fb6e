"""`ivmix up`. In a terminal log lines go to a file; elsewhere they stay on stderr, as service managers expect."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler

from service.cli.console import Steps
from service.cli.readiness import StorageCheck, problems
from service.log_config import configure_logging
from service.process.data_folder import keep_private, prepare_folder
from service.process.supervisor import Supervisor
from service.settings import Settings

AUTH_NOTICES = {
    "off": "authentication is off: everyone who can reach this address can use it",
    "keys": "clients need an API key: `ivmix keys create --name NAME` creates one",
}
LARGE_LOG_BYTES = 10 * 2**20  # the next run starts a new file


class StopSignals:
    """Set by SIGINT and SIGTERM. Until `is_started` they also interrupt what runs, because the start may block."""

    def __init__(self) -> None:
        self.is_set = self.is_started = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
        if not self.is_started:
            raise KeyboardInterrupt


def run(settings: Settings, workers: int, *, with_logs: bool) -> None:
    """Run all processes until a signal. Raises ConfigurationError or ServiceUnavailable if they do not start."""
    logs_to_file = sys.stderr.isatty() and not with_logs
    steps = Steps(may_animate=logs_to_file or not sys.stderr.isatty())
    configure_logging(settings.log_format)
    prepare_data(settings)
    log_file = None
    if logs_to_file:
        if settings.log_format == "auto":  # a person will read it
            settings = settings.model_copy(update={"log_format": "text"})
        logs = settings.data_dir / "logs"
        prepare_folder(logs, "IVMIX_DATA_DIR")
        log_file = log_to_file(settings, logs / "up.log", steps.console)
    stop = StopSignals()
    try:
        with ExitStack() as stack:
            with steps.step("service", "queue, API, webhooks and maintenance"):
                supervisor = stack.enter_context(Supervisor(settings, workers, log_file))
            stop.is_started = True
            storage = StorageCheck(settings)
            storage.start()
            steps.say(f"ivmix is up on {supervisor.url}  (API documentation: {supervisor.url}/docs; Ctrl-C stops)")
            steps.say(AUTH_NOTICES[supervisor.settings.auth])
            _load_models(steps, supervisor, stop)
            _say_what_works(steps, supervisor, storage, stop)
            supervisor.run_until(lambda: stop.is_set)
            steps.say("stopping")
    except KeyboardInterrupt:
        steps.say("stopped while starting")


def _load_models(steps: Steps, supervisor: Supervisor, stop: StopSignals) -> None:
    """Wait until every worker has loaded its models, or says why it cannot. The supervisor logs workers that end."""
    if not supervisor.models:
        steps.say("no worker runs here, so jobs wait until `ivmix worker` runs elsewhere")
        return
    with steps.step("models", f"loading {', '.join(supervisor.models)}") as step:
        supervisor.run_until(lambda: stop.is_set or supervisor.have_workers_reported)
        if stop.is_set:
            raise KeyboardInterrupt
        step.done = ", ".join(supervisor.devices) or "none could be loaded"


def _say_what_works(steps: Steps, supervisor: Supervisor, storage: StorageCheck, stop: StopSignals) -> None:
    """The last lines of the start: what does not work, if there is something, otherwise that all of it does."""
    supervisor.run_until(lambda: stop.is_set or not storage.is_alive())
    if stop.is_set:
        return
    if supervisor.log_file:
        steps.say(f"log: {supervisor.log_file}")
    found = list(problems(supervisor, storage.problem))
    devices = "; ".join(f"{model} on {', '.join(on)}" for model, on in supervisor.devices.items())
    if devices and not storage.problem:
        page = supervisor.url if supervisor.settings.page else f"{supervisor.url}/docs"
        steps.say(f"ready for work: {devices}. Try it: {page}", style="bold")
    for problem in found:
        steps.say(f"not ready: {problem}", style="bold red")


def prepare_data(settings: Settings) -> None:
    """Raises ConfigurationError if the data folder is needed and cannot be used."""
    if settings.redis_url is None or settings.storage == "file":
        prepare_folder(settings.data_dir, "IVMIX_DATA_DIR")
        keep_private(settings.data_dir)


def log_to_file(settings: Settings, file: Path, console: Console) -> Path:
    """Append the log to a file, and show warnings about whole processes in the terminal.

    The file is not renamed at every start: a second `ivmix up` would take it from the one that runs, and then end.
    """
    if file.is_file() and file.stat().st_size > LARGE_LOG_BYTES:
        file.replace(file.with_suffix(".log.1"))
    configure_logging(settings.log_format, file=file)
    shown = RichHandler(logging.WARNING, console, show_time=False, show_path=False)
    shown.setFormatter(logging.Formatter(f"%(message)s; log: {file}"))
    logging.getLogger("ivmix.up").handlers[:] = [shown]
    return file
