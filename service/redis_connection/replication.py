"""Waits until replicas have a change before it is acknowledged, so that a failover cannot lose it.

Redis replicates after it has answered. WAIT counts the replicas that have all writes of its connection so far.
Therefore the change and WAIT travel in one pipeline: on another connection WAIT might ask a primary that was promoted
in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError

from service.errors import NotReplicated
from service.redis_scripts import Script, UntypedRedis, load_script, script_source

# Written before every WAIT: it returns at once on a connection that has not written, as after a change that was made
# before, and what other connections have written earlier is in front of this write in the stream to the replicas.
MARKER = "ivm:replicated"


@dataclass(frozen=True)
class Replication:
    """How many replicas must have a change before it is acknowledged, and how long that may take. 0: none, no wait."""

    replicas: int = 0
    timeout_s: float = 2.0

    def require(self, redis: Redis) -> None:
        """Raises NotReplicated if too few replicas are there, before anything is changed."""
        self._run(redis, [])

    def has(self, redis: Redis, keys: Iterable[str]) -> bool:
        """Whether all keys exist, on enough replicas too. Raises NotReplicated if replicas lack them."""
        return not self.replicas or all(self._run(redis, [("EXISTS", key) for key in keys]))

    def run(self, redis: Redis, *command: Any) -> Any:
        """The reply to one command. Raises NotReplicated if the primary has run it, but too few replicas have."""
        return self._run(redis, [command])[0]

    def load_script(self, redis: Redis, package: str, name: str) -> Script:
        """Like `redis_scripts.load_script`. The function raises NotReplicated if the primary has made the change, but
        too few replicas have it in time."""
        if not self.replicas:
            return load_script(redis, package, name)
        source, sha = script_source(package, name)

        def run(keys: list[str], args: list[Any]) -> Any:
            try:
                return self._run(redis, [("EVALSHA", sha, len(keys), *keys, *args)])[0]
            except NoScriptError:
                return self._run(redis, [("EVAL", source, len(keys), *keys, *args)])[0]

        return run

    def _run(self, redis: UntypedRedis, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Replies to the commands, after enough replicas have what they wrote and read."""
        if not self.replicas:
            return [redis.execute_command(*command) for command in commands]
        with redis.pipeline(transaction=False) as pipe:
            for command in (*commands, ("SET", MARKER, 1), ("WAIT", self.replicas, int(1000 * self.timeout_s))):
                pipe.execute_command(*command)
            *replies, _, reached = pipe.execute()
        if reached < self.replicas:
            raise NotReplicated(int(reached), self.replicas, self.timeout_s)
        return replies
