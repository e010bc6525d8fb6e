"""Real Valkey servers, one primary and its replicas, and Sentinels that promote a replica when the primary is lost."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.process.embedded_valkey import find_valkey_binary
from tests.child_processes import ends_with_tests
from tests.ports import free_port
from tests.processes import wait_for
from tests.valkey import Valkey

SERVICE = "videos"
SENTINEL_PASSWORD = "watch"
# Without an answer; a replica is promoted soon after. Shorter, a primary that a busy machine delays counts as lost:
# failovers then follow one another before the replicas have caught up, and lose what was acknowledged in between.
DOWN_AFTER_MS = 2000

SERVER_CONFIG = """\
masterauth secret
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""
_SENTINEL = f"""\
bind 127.0.0.1
port {{port}}
dir "{{folder}}"
requirepass {SENTINEL_PASSWORD}
sentinel sentinel-pass {SENTINEL_PASSWORD}
sentinel monitor {SERVICE} 127.0.0.1 {{primary}} 2
sentinel auth-pass {SERVICE} secret
sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}
sentinel failover-timeout {SERVICE} 3000
sentinel parallel-syncs {SERVICE} 2
"""


class SentinelProcess:
    def __init__(self, folder: Path, primary_port: int) -> None:
        self.port = free_port()
        folder.mkdir(parents=True)
        config = folder / "sentinel.conf"
        config.write_text(_SENTINEL.format(port=self.port, folder=folder, primary=primary_port))
        with (folder / "sentinel.log").open("wb") as log:
            command = [find_valkey_binary(), str(config), "--sentinel"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ends_with_tests())
        self.client: Any = _client(self.port, SENTINEL_PASSWORD)

    def kill(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


class SentinelSet:
    """A context: one primary, replicas, three Sentinels. Entering waits until all know each other."""

    def __init__(self, folder: Path, *, replicas: int = 2) -> None:
        self.servers = [Valkey(folder / "server-0", more=SERVER_CONFIG)]
        more = f"{SERVER_CONFIG}replicaof 127.0.0.1 {self.servers[0].port}\n"
        self.servers += [Valkey(folder / f"server-{i + 1}", more=more) for i in range(replicas)]
        self.sentinels: list[SentinelProcess] = []
        self._folder, self._stack = folder, ExitStack()

    def __enter__(self) -> SentinelSet:
        with self._stack:
            for server in self.servers:
                self._stack.enter_context(server)
            for number in range(3):
                sentinel = SentinelProcess(self._folder / f"sentinel-{number}", self.servers[0].port)
                self._stack.callback(sentinel.kill)
                self.sentinels.append(sentinel)
            self.wait_until_complete()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Without the Sentinels' password, which is a separate setting."""
        nodes = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:secret@{nodes}/{SERVICE}/0"

    @property
    def environment(self) -> dict[str, str]:
        return {"IVMIX_REDIS_URL": self.url, "IVMIX_REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD}

    @property
    def primary(self) -> Valkey:
        """The server that the Sentinels name."""
        _, port = self.sentinels[0].client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == port)

    @property
    def replicas(self) -> list[Valkey]:
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def wait_until_complete(self) -> None:
        """Until every Sentinel knows the others and all replicas, and every replica has the primary's data."""
        wait_for(lambda: self._is_complete() or None, timeout_s=60, hint="for Sentinels and replicas")

    def _is_complete(self) -> bool:
        try:
            states = [sentinel.client.sentinel_masters()[SERVICE] for sentinel in self.sentinels]
            with _client(self.primary.port, "secret") as redis:
                online = [name for name in redis.info("replication") if name.startswith("slave")]
                info = redis.info("replication")
        except (RedisError, KeyError, StopIteration):
            return False
        wanted = len(self.servers) - 1
        return (
            all(state["num-other-sentinels"] == 2 and state["num-slaves"] >= wanted for state in states)
            and not any(state["is_sdown"] for state in states)
            and sum(info[name]["state"] == "online" for name in online) == wanted
        )

    @property
    def promotions(self) -> int:
        """How many there have been, also those of primaries that were only slow."""
        logs = self._folder.glob("sentinel-*/sentinel.log")
        return max(log.read_text().count("+switch-master") for log in logs)

    def kill_primary(self) -> Valkey:
        """kill -9; the Sentinels promote a replica. Returns the server that was killed."""
        killed = self.primary
        killed.kill()
        return killed

    def wait_for_promotion(self, killed: Valkey) -> None:
        wait_for(lambda: self.primary is not killed or None, timeout_s=60, hint="for a promotion")


def _client(port: int, password: str) -> Any:  # redis-py is partly untyped
    return Redis(host="127.0.0.1", port=port, password=password, socket_timeout=2, retry=Retry(NoBackoff(), 0))
