"""The queue on a primary with replicas and Sentinels, in the place of the embedded server.

A primary that is killed does not come back: the log of a server that was down would begin anew, and the checker reads
every state from the log of the last primary.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tests.processes import wait_for
from tests.sentinels import SENTINEL_PASSWORD, SentinelSet
from tests.valkey import Valkey

REPLICAS = 3
LEAST = 2  # servers that must be left: a primary, and the replica that every accepted video waits for


class SentinelQueue:
    """A context with the parts of `EmbeddedQueue` that the cluster uses."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir, self.folder = data_dir, data_dir
        self._servers = SentinelSet(data_dir / "servers", replicas=REPLICAS)

    def __enter__(self) -> SentinelQueue:
        self._servers.__enter__()
        self.living = list(self._servers.servers)
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.__exit__()

    @property
    def url(self) -> str:
        return f"{self._servers.url}?sentinel_password={quote(SENTINEL_PASSWORD)}"

    @property
    def port(self) -> int:
        return self._servers.primary.port

    def kill_primary(self) -> Valkey:
        killed = self._servers.kill_primary()
        self.living.remove(killed)
        return killed

    def wait_for_promotion(self, killed: Valkey) -> None:
        self._servers.wait_for_promotion(killed)

    def kill(self) -> None:
        """At the end of a run; `folder` is then that of the last primary."""
        primary = wait_for(lambda: self._servers.primary, hint="for the Sentinels")
        self.folder = primary.folder
        for server in self.living:
            server.kill()
