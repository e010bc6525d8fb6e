"""Runs all processes of one machine for `ivmix up`: embedded Valkey, API, webhook dispatcher, maintenance, workers.
Restarts crashed processes; all of them exit with the supervisor, even if it is killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from service.catalog.registry import ModelRegistry
from service.errors import ServiceUnavailable
from service.process.embedded_valkey import EmbeddedValkey
from service.process.parent_watch import SUPERVISOR
from service.process.ports import bind_port
from service.process.readiness import READY_FD, ReadyPipe, WorkerReport
from service.redis_connection.wait import wait_for_redis
from service.settings import PREFIX, Settings

log = logging.getLogger("ivmix.up")

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 30.0  # time for a worker to finish a step and requeue its job
RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # after consecutive crashes; the last one repeats
STABLE_S = 60.0  # a process that has run this long starts again with the first delay


@dataclass
class _Process:
    name: str
    module: list[str]  # with its arguments
    handle: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    crashes: int = 0
    restart_at: float = 0.0
    report: WorkerReport | None = None  # of a worker: the last one


@dataclass
class Supervisor:
    """A context manager: entering starts all processes and waits until the API is ready, leaving stops them.

    Args:
        workers: per model.
        log_file: where the processes log; None: to this process's stderr.
    """

    settings: Settings
    workers: int = 1
    log_file: Path | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _processes: list[_Process] = field(default_factory=list[_Process])
    _environment: Mapping[str, str] = field(default_factory=dict[str, str])
    _valkey: EmbeddedValkey | None = None
    _pipe: ReadyPipe = field(init=False)

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.settings.port}"

    def __enter__(self) -> Self:
        if "auth" not in self.settings.model_fields_set and self.settings.is_loopback:
            self.settings = self.settings.model_copy(update={"auth": "off"})  # a single user on a single machine
        self.settings.require_auth_on_public_host()
        models = ModelRegistry.of(self.settings).ids()
        port = _usable_port(self.settings.host, self.settings.port)
        self.settings = self.settings.model_copy(update={"port": port})
        with self._stack:  # if the start fails, stop what was started
            self._pipe = self._stack.enter_context(ReadyPipe())
            self._environment = self._environment_of_processes(self._redis_url())
            self._stack.callback(self._stop_all)
            self._processes = [
                _Process("api", ["service.api"]),
                _Process("webhooks", ["service.webhook_dispatcher"]),
                _Process("maintenance", ["service.maintenance"]),
                *(_Process(f"worker {model} {i}", ["worker", model]) for model in models for i in range(self.workers)),
            ]
            for process in self._processes:
                self._launch(process)
            self._wait_until_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def run_until(self, is_stopping: Callable[[], bool]) -> None:
        """Restart crashed processes until `is_stopping` returns true."""
        while not is_stopping():
            if self._valkey is not None:
                self._valkey.restart_if_exited()
            self._restart_crashed()
            time.sleep(0.2)
            self._read_reports()

    def wait_for_workers(self) -> None:
        """Return when all workers can take jobs. Raises ServiceUnavailable if one ends instead, or cannot load."""
        while not self.have_workers_reported or self.problems:
            if problems := [f"model {model} cannot be loaded: {problem}" for model, problem in self.problems.items()]:
                raise ServiceUnavailable(f"{'; '.join(problems)}{self._see_log()}")
            for worker in self._workers:
                if worker.handle is not None and (code := worker.handle.poll()) is not None:
                    raise ServiceUnavailable(f"{worker.name} exited with code {code} while loading{self._see_log()}")
            time.sleep(0.05)
            self._read_reports()

    @property
    def have_workers_reported(self) -> bool:
        """Whether every worker has loaded its models or has said why it cannot. False without workers."""
        return bool(self._workers) and all(worker.report for worker in self._workers)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have workers."""
        return tuple(dict.fromkeys(worker.module[1] for worker in self._workers))

    @property
    def devices(self) -> dict[str, list[str]]:
        """The devices of the ready workers by model."""
        found: dict[str, list[str]] = {}
        for report in self._reports:
            if not report.problem:
                found.setdefault(report.model, []).append(report.device)
        return found

    @property
    def problems(self) -> dict[str, str]:
        """Why models cannot be loaded; only of models without a ready worker."""
        return {report.model: report.problem for report in self._reports if report.model not in self.devices}

    @property
    def _reports(self) -> list[WorkerReport]:
        return [worker.report for worker in self._workers if worker.report is not None]

    @property
    def _workers(self) -> list[_Process]:
        return [process for process in self._processes if process.module[0] == "worker"]

    def _read_reports(self) -> None:
        reports = {report.pid: report for report in self._pipe.read()}
        for worker in self._workers:
            if worker.handle is not None and (report := reports.get(worker.handle.pid)) is not None:
                _log_change(worker, report)
                worker.report = report

    def _restart_crashed(self) -> None:
        now = time.monotonic()
        for process in self._processes:
            if process.handle is not None and (code := process.handle.poll()) is not None:
                process.crashes = 0 if now - process.started > STABLE_S else process.crashes + 1
                delay = RESTART_DELAYS_S[min(process.crashes, len(RESTART_DELAYS_S)) - 1] if process.crashes else 0.0
                log.warning("%s exited with code %d; restarting it in %.1f s", process.name, code, delay)
                process.handle, process.report, process.restart_at = None, None, now + delay
            elif process.handle is None and now >= process.restart_at:
                self._launch(process)

    def _redis_url(self) -> str:
        if url := self.settings.redis_url:
            wait_for_redis(url, threading.Event())
            return url
        self._valkey = EmbeddedValkey(self.settings.data_dir)
        return self._stack.enter_context(self._valkey)

    def _environment_of_processes(self, redis_url: str) -> dict[str, str]:
        return {
            **os.environ,
            PREFIX + "REDIS_URL": redis_url,
            PREFIX + "DATA_DIR": str(self.settings.data_dir),
            PREFIX + "HOST": self.settings.host,
            PREFIX + "PORT": str(self.settings.port),
            PREFIX + "AUTH": self.settings.auth,
            PREFIX + "LOG_FORMAT": self.settings.log_format,
            PREFIX + "EMBEDDED_QUEUE": str(self._valkey is not None),
            SUPERVISOR: str(os.getpid()),
        }

    def _launch(self, process: _Process) -> None:
        environment, inherited = dict(self._environment), list[int]()
        if process in self._workers:
            environment[READY_FD] = str(self._pipe.writer)
            inherited.append(self._pipe.writer)
        with ExitStack() as stack:
            log_file = stack.enter_context(open(self.log_file, "ab")) if self.log_file else None
            # In a new session: Ctrl-C reaches only the supervisor, which then stops the others in order.
            process.handle = subprocess.Popen(
                [sys.executable, "-m", *process.module],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                pass_fds=inherited,
            )
        process.started = time.monotonic()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        api = self._processes[0]
        while time.monotonic() < deadline:
            if api.handle is not None and (code := api.handle.poll()) is not None:
                raise ServiceUnavailable(f"the API exited with code {code} while starting{self._see_log()}")
            if self._valkey is not None:
                self._valkey.restart_if_exited()
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.1)
        raise ServiceUnavailable(f"the API at {self.url} was not ready after {READY_TIMEOUT_S:.0f} s")

    def _see_log(self) -> str:
        return f"; see {self.log_file}" if self.log_file else "; see its log output above"

    def _stop_all(self) -> None:
        running = [p.handle for p in self._processes if p.handle is not None and p.handle.poll() is None]
        for handle in running:
            handle.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for handle in running:
            try:
                handle.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("process %d did not stop in time; killing it", handle.pid)
                os.killpg(handle.pid, signal.SIGKILL)  # the whole session, including a worker's child process
                handle.wait()
        self._processes.clear()


def _log_change(worker: _Process, report: WorkerReport) -> None:
    before = worker.report.problem if worker.report else ""
    if report.problem and report.problem != before:
        log.error("model %s cannot be loaded by %s, which tries again: %s", report.model, worker.name, report.problem)
    elif before and not report.problem:
        log.warning("model %s is loaded again by %s", report.model, worker.name)


def _usable_port(host: str, port: int) -> int:
    """`port`, or a free port if it is 0. Raises ConfigurationError if it cannot be used."""
    sockets = bind_port(host, port, "IVMIX_PORT or --port")
    chosen = int(sockets[0].getsockname()[1])
    for s in sockets:
        s.close()
    return chosen
