"""All processes of one machine: embedded server, API, courier, maintenance, workers. Starts them, restarts what
crashes, ends every one of them when it is told to, or when it is killed itself. Knows commands, not what they do."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx2

from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, ServiceUnavailable
from service.process.embedded_valkey import EmbeddedValkey
from service.process.parent_watch import SUPERVISOR
from service.settings import PREFIX, Settings

log = logging.getLogger("ivmix.up")

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 30.0  # a worker finishes one step and hands its job back
RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # between crashes; the last one repeats
STEADY_S = 60.0  # running this long, a process counts as healthy again


@dataclass
class _Process:
    name: str
    command: list[str]
    handle: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    crashes: int = 0
    restart_at: float = 0.0


@dataclass
class Supervisor:
    """A context: entering starts everything and waits until the API answers, leaving stops everything."""

    settings: Settings
    workers: int = 1
    _stack: ExitStack = field(default_factory=ExitStack)
    _processes: list[_Process] = field(default_factory=list[_Process])
    _environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.settings.port}"

    def __enter__(self) -> Self:
        if "auth" not in self.settings.model_fields_set and self.settings.is_loopback:
            self.settings = self.settings.model_copy(update={"auth": "off"})  # one machine, one person
        self.settings.require_auth_on_public_host()
        models = ModelRegistry.of(self.settings).ids()
        port = _usable_port(self.settings.host, self.settings.port)
        self.settings = self.settings.model_copy(update={"port": port})
        with self._stack:  # a failed start takes down what it had started
            url = self.settings.redis_url or self._stack.enter_context(EmbeddedValkey(self.settings.data_dir))
            self._stack.callback(self._stop_all)
            self._environment = {
                **os.environ,
                PREFIX + "REDIS_URL": url,
                PREFIX + "DATA_DIR": str(self.settings.data_dir),
                PREFIX + "HOST": self.settings.host,
                PREFIX + "PORT": str(port),
                PREFIX + "AUTH": self.settings.auth,
                SUPERVISOR: str(os.getpid()),
            }
            self._processes.append(_Process("api", [sys.executable, "-m", "service.api"]))
            self._processes.append(_Process("webhooks", [sys.executable, "-m", "service.webhook_dispatcher"]))
            self._processes.append(_Process("maintenance", [sys.executable, "-m", "service.maintenance"]))
            for model in models:
                for i in range(self.workers):
                    self._processes.append(_Process(f"worker {model} {i}", [sys.executable, "-m", "worker", model]))
            for process in self._processes:
                self._launch(process)
            self._wait_until_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def watch(self, stopping: Callable[[], bool]) -> None:
        """Restart what crashes until `stopping`."""
        while not stopping():
            self.tend()
            time.sleep(0.2)

    def tend(self) -> None:
        now = time.monotonic()
        for process in self._processes:
            if process.handle is not None and (code := process.handle.poll()) is not None:
                process.crashes = 0 if now - process.started > STEADY_S else process.crashes + 1
                delay = RESTART_DELAYS_S[min(process.crashes, len(RESTART_DELAYS_S)) - 1] if process.crashes else 0.0
                log.warning("%s ended with code %d; starting it again in %.1f s", process.name, code, delay)
                process.handle, process.restart_at = None, now + delay
            elif process.handle is None and now >= process.restart_at:
                self._launch(process)

    def _launch(self, process: _Process) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor, which then ends the others in order.
        process.handle = subprocess.Popen(
            process.command, env=dict(self._environment), stdin=subprocess.DEVNULL, start_new_session=True
        )
        process.started = time.monotonic()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        api = self._processes[0]
        while time.monotonic() < deadline:
            if api.handle is not None and (code := api.handle.poll()) is not None:
                raise ServiceUnavailable(f"the API ended with code {code} while starting; its last lines say why")
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.1)
        raise ServiceUnavailable(f"the API does not answer on {self.url} after {READY_TIMEOUT_S:.0f} s")

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
                os.killpg(handle.pid, signal.SIGKILL)  # its whole session: a worker's child goes with it
                handle.wait()
        self._processes.clear()


def _usable_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises ConfigurationError if somebody listens there already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            raise ConfigurationError(
                f"port {port} on {host} is taken ({e.strerror}); choose another with --port"
            ) from e
        return int(s.getsockname()[1])
