"""A small deployment on one machine: starts every process, restarts those that end, stops all of them at the end.

Three workers on two "machines" (scratch folders), two maintenance processes, two webhook dispatchers, one API. Each
reaches Redis through a separate TCP proxy; all reach the storage through one S3 proxy. With Sentinels the processes
connect to the servers themselves, whose addresses the Sentinels name.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from redis import Redis

from service.process.parent_watch import SUPERVISOR
from service.settings import Settings
from service.wiring import Services, open_services
from tests.faults.embedded_queue import EmbeddedQueue
from tests.faults.history import History
from tests.faults.proxies import TcpProxies
from tests.faults.receiver import Receiver
from tests.faults.s3_proxy import S3Proxy
from tests.faults.sentinel_queue import SentinelQueue
from tests.ports import free_port
from tests.processes import T, clean_environment, running_child_of, wait_for
from tests.skewed_clock import CLOCK
from tests.swift import ACCESS_KEY, SECRET_KEY, admin_client

BUCKET = "videos-fault-injection"
LEASE_S, BEAT_S, LOOK_S = 4.0, 0.5, 0.2
WEBHOOK_TIMEOUT_S = 2.0
READY_S = 120.0  # until every process answers, on a busy machine
STOP_S = 60.0
COMMITTED = re.compile(rb'^\{.*"event": "job (video_[0-9a-f]{32}) completed after ')
RESTART_S = 0.3  # as a supervisor would, after a process has ended

WORKERS = ("worker-0", "worker-1", "worker-2")
MAINTENANCES = ("maintenance-0", "maintenance-1")
DISPATCHERS = ("dispatcher-0", "dispatcher-1")
CLIENTS = ("client-0", "client-1", "client-2", "client-3", "flooder")  # each has an API key of its own
MACHINE = {"worker-2": "machine-b"}  # the others share machine-a

MODULES: dict[str, str] = {
    "api": "service.api.__main__",
    **dict.fromkeys(MAINTENANCES, "service.maintenance.__main__"),
    **dict.fromkeys(DISPATCHERS, "service.webhook_dispatcher.__main__"),
    **dict.fromkeys(WORKERS, "tests.fake_worker"),
}


@dataclass
class Process:
    """`is_hit`: a fault or an operator ended it, so its exit is expected."""

    name: str
    start: Callable[[float], subprocess.Popen[bytes]]
    handle: subprocess.Popen[bytes]
    is_hit: bool = False
    clock_s: float = 0.0
    restart_at: float = 0.0

    @property
    def is_running(self) -> bool:
        return self.handle.poll() is None

    @property
    def child(self) -> int | None:
        """Process id of a worker's child, which holds the models."""
        return running_child_of(self.handle.pid)

    def send(self, number: signal.Signals) -> bool:
        """False if it was not running."""
        if not self.is_running:
            return False
        self.is_hit |= number not in (signal.SIGSTOP, signal.SIGCONT)
        self.handle.send_signal(number)
        return True


@dataclass
class Cluster:
    """A context: entering starts every process and waits until all are ready; leaving kills what still runs."""

    folder: Path
    history: History
    s3_url: str
    uses_sentinels: bool = False
    processes: dict[str, Process] = field(default_factory=dict)
    api_keys: dict[str, str] = field(default_factory=dict)  # name of a client: its secret
    owners: dict[str, str] = field(default_factory=dict)
    is_closing: threading.Event = field(default_factory=threading.Event)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Cluster:
        with self._stack:
            enter = self._stack.enter_context
            self.valkey = enter(SentinelQueue(self.folder) if self.uses_sentinels else EmbeddedQueue(self.folder))
            self.redis_proxies = enter(TcpProxies(self.valkey.port, list(MODULES)))
            self.s3_proxy = enter(S3Proxy(self.s3_url))
            self.receiver = enter(Receiver(self.history, slow_s=WEBHOOK_TIMEOUT_S + 1))
            self._create_bucket()
            self.services = self._services()  # bypasses the proxies, for observers
            self._stack.callback(self.services.close)
            for name in CLIENTS:
                self._add_key(name)
            self.redis: Redis = self.services.redis
            self.api_port = free_port()
            self._stack.callback(self._kill_all)
            for name, module in MODULES.items():
                self.processes[name] = self._process(name, module)
            self._restarter = threading.Thread(target=self._restart_ended, name="restarter", daemon=True)
            self._restarter.start()
            self._stack.callback(self._stop_restarter)
            self._wait_until_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def owner(self, name: str = CLIENTS[0]) -> str:
        """The owner of a client's videos, which stays the same when its key is replaced."""
        return self.owners[name]

    def replace_key(self, name: str) -> str:
        """Give a client a new key for the same videos, revoke its old one and return that."""
        old = next(
            key
            for key, _ in self.services.keys.list()
            if (key.owner, key.revoked_at, key.name) == (self.owners[name], None, name)
        )
        revoked = self.api_keys[name]
        self._add_key(name)
        self.services.keys.revoke(old.id)
        return revoked

    def _add_key(self, name: str) -> None:
        key, self.api_keys[name] = self.services.keys.create(
            name, owner=self.owners.get(name), requests_per_minute=1_000_000
        )
        self.owners[name] = key.owner

    def stop(self) -> None:
        """Send SIGTERM to all, as an operator would, and record those that do not stop."""
        self._stop_restarter()
        # The last fault may have killed one that is no longer started again.
        running = [process for process in self.processes.values() if process.send(signal.SIGTERM)]
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                code = process.handle.wait(max(0.1, deadline - time.monotonic()))
                self.history.record("cluster", "stopped", name=process.name, code=code)
            except subprocess.TimeoutExpired:
                self.history.record("cluster", "does not stop", name=process.name)

    def restart(self, name: str, *, clock_s: float) -> None:
        """Stop it with SIGTERM; it is started again with its clock off by `clock_s`."""
        process = self.processes[name]
        process.clock_s = clock_s
        process.send(signal.SIGTERM)

    def _restart_ended(self) -> None:
        while not self.is_closing.wait(0.05):
            for process in self.processes.values():
                if process.is_running:
                    continue
                now = time.monotonic()
                if not process.restart_at:
                    process.restart_at = now + RESTART_S
                    code, by = process.handle.returncode, "hit" if process.is_hit else "itself"
                    self.history.record("cluster", "ended", name=process.name, code=code, by=by)
                elif now >= process.restart_at:
                    process.restart_at, process.is_hit = 0.0, False
                    process.handle = process.start(process.clock_s)
                    self.history.record("cluster", "started", name=process.name, clock_s=process.clock_s)

    def _stop_restarter(self) -> None:
        self.is_closing.set()
        self._restarter.join()

    def _kill_all(self) -> None:
        for process in self.processes.values():
            if process.is_running:
                os.killpg(process.handle.pid, signal.SIGKILL)
                process.handle.wait()

    def _process(self, name: str, module: str) -> Process:
        environment = self._environment(name)
        log = self.folder / f"{name}.log"

        def start(clock_s: float) -> subprocess.Popen[bytes]:
            handle = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.short_timeouts", module],
                env={**clean_environment(), **environment, CLOCK: str(clock_s)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # Through a pipe: the file size limit that simulates a full disk would also apply to a log file.
            threading.Thread(target=self._listen, args=(name, handle, log), daemon=True).start()
            return handle

        return Process(name, start, start(0.0))

    def _listen(self, name: str, handle: subprocess.Popen[bytes], log: Path) -> None:
        """Write the log, and record the commits in it: the AOF does not show which process wrote."""
        assert handle.stdout is not None
        with handle.stdout, log.open("ab") as file:
            for line in handle.stdout:
                file.write(line)
                file.flush()
                if found := COMMITTED.search(line):
                    entry = json.loads(line)
                    self.history.record(name, "commit", id=found[1].decode(), execution=entry["execution_id"])

    def _environment(self, name: str) -> dict[str, str]:
        return {
            SUPERVISOR: str(os.getpid()),
            **self._redis_settings(name),
            "IVMIX_PORT": str(self.api_port),
            "IVMIX_AUTH": "keys",
            "IVMIX_MODELS": "demo",
            "IVMIX_DATA_DIR": str(self.folder / MACHINE.get(name, "machine-a")),
            "IVMIX_STORAGE": "s3",
            "IVMIX_S3_BUCKET": BUCKET,
            "IVMIX_S3_ENDPOINT_URL": self.s3_proxy.url,
            "IVMIX_S3_ACCESS_KEY_ID": ACCESS_KEY,
            "IVMIX_S3_SECRET_ACCESS_KEY": SECRET_KEY,
            "IVMIX_S3_TIMEOUT_S": "3",
            "IVMIX_STORAGE_RETRY_S": "60",
            "IVMIX_LEASE_S": str(LEASE_S),
            "IVMIX_BEAT_S": str(BEAT_S),
            "IVMIX_LOOK_S": str(LOOK_S),
            "IVMIX_CHECKPOINT_S": "0.5",
            "IVMIX_STALL_TIMEOUT_S": "10",
            "IVMIX_STOP_GRACE_S": "5",
            "IVMIX_COMMIT_PATIENCE_S": "60",
            "IVMIX_WEBHOOK_ALLOW": "127.0.0.0/8",
            "IVMIX_WEBHOOK_ALLOW_HTTP": "true",
            "IVMIX_WEBHOOK_TIMEOUT_S": str(WEBHOOK_TIMEOUT_S),
            "IVMIX_WEBHOOK_RETRY_DELAYS_S": ",".join(["0.3", "0.5", "1"] + ["2"] * 60),
            "IVMIX_WEBHOOK_CONCURRENCY": "4",
            "FAKE_STEP_S": "0.1",
            "OMP_NUM_THREADS": "1",
        }

    def _redis_settings(self, name: str) -> dict[str, str]:
        if isinstance(self.valkey, SentinelQueue):
            settings = {"IVMIX_REDIS_WAIT_REPLICAS": "1", "IVMIX_REDIS_WAIT_S": "1"}  # less than short_timeouts.py's
            return {"IVMIX_REDIS_URL": self.valkey.url, **settings}
        proxy = f"127.0.0.1:{self.redis_proxies.port(name)}"
        return {"IVMIX_REDIS_URL": f"redis://:{self.valkey.password}@{proxy}/0"}

    @property
    def embedded(self) -> EmbeddedQueue:
        assert isinstance(self.valkey, EmbeddedQueue), "this fault needs the embedded server"
        return self.valkey

    def _services(self) -> Services:
        return open_services(
            Settings(
                redis_url=self.valkey.url,
                data_dir=self.folder / "outside",
                auth="off",
                storage="s3",
                s3_bucket=BUCKET,
                s3_endpoint_url=self.s3_url,
                s3_access_key_id=ACCESS_KEY,
                s3_secret_access_key=SECRET_KEY,  # type: ignore[arg-type]
            )
        )

    def _create_bucket(self) -> None:
        client = admin_client(self.s3_url, (ACCESS_KEY, SECRET_KEY))
        client.create_bucket(Bucket=BUCKET)
        client.close()

    def _wait_until_ready(self) -> None:
        def answers(name: str) -> str | None:
            headers = {"authorization": f"Bearer {self.api_keys[name]}"}
            try:
                reply = httpx2.get(f"{self.url}/v1/webhook_callback_secret", headers=headers, timeout=5)
                return reply.json()["signing_secret"]
            except (httpx2.HTTPError, ValueError, KeyError):
                return None

        def wait(process: str, what: Callable[[], T | None]) -> T:
            try:
                return wait_for(what, timeout_s=READY_S)
            except TimeoutError:
                log = self.folder / f"{process}.log"
                raise TimeoutError(f"{process} is not ready: {log.read_text()[-2000:] or 'empty log'}") from None

        for name in CLIENTS:
            self.receiver.secrets.append(wait("api", lambda name=name: answers(name)))
        for name in WORKERS:
            wait(name, lambda name=name: self.processes[name].child)
