"""How many connections a server holds, for how long it waits for a client, and which one goes when there are too many.

Uvicorn limits none of this: it waits for the rest of a request indefinitely, and its `limit_concurrency` refuses new
clients while silent ones keep their places.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

log = logging.getLogger("ivmix.connections")

EVICTABLE_AFTER_S = 1.0  # a request may take this long before its connection counts as one that waits for the client
LOG_INTERVAL_S = 60.0
OTHER_FILES = 128  # descriptors for Redis, logs, the listening socket and connections accepted in one go


class ConnectionState(StrEnum):
    RECEIVING = "receiving"  # the client has not sent a whole request yet
    STALLED = "stalled"  # the client does not take the response
    IDLE = "idle"  # between two requests
    ACTIVE = "active"  # the server is at work


class ClientConnection(Protocol):
    address: str

    def expire(self) -> bool:
        """Close it unless it has made progress; returns whether it was closed."""
        ...

    def evict(self) -> None: ...

    def refuse(self) -> None: ...

    def is_closing(self) -> bool: ...


@dataclass
class _Group:
    """Connections by state, each with the time since when it has been in this state; the oldest is the first."""

    since: dict[ConnectionState, dict[ClientConnection, float]] = field(
        default_factory=lambda: {state: {} for state in ConnectionState}
    )

    def __len__(self) -> int:
        return sum(map(len, self.since.values()))

    def put(self, connection: ClientConnection, state: ConnectionState, now: float) -> None:
        self.remove(connection)
        self.since[state][connection] = now

    def remove(self, connection: ClientConnection) -> None:
        for connections in self.since.values():
            connections.pop(connection, None)

    def victim(self, newest: ClientConnection, now: float, limit: int) -> ClientConnection | None:
        """The connection to close for `newest`: one that waits for its client, otherwise the one idle for longest."""
        receiving, stalled, idle = (
            self.since[state] for state in (ConnectionState.RECEIVING, ConnectionState.STALLED, ConnectionState.IDLE)
        )
        if len(receiving) > limit // 4:  # a flood: ordinary requests arrive in one piece
            return next(iter(receiving))
        waiting = [next(iter(found.items())) for found in (receiving, stalled) if found]
        overdue = [found for found in waiting if found[1] < now - EVICTABLE_AFTER_S]
        if overdue:
            return min(overdue, key=lambda found: found[1])[0]
        return next((found for found in (*idle, *receiving) if found is not newest), None)


class Connections:
    """All connections of one server.

    Args:
        limit: most connections.
        per_address: most connections of one address, or of one /64 network for IPv6.
        timeout_s: how long a client may take for a request, or to take a part of a response.
        exempt: addresses without a separate limit, such as trusted proxies.
    """

    def __init__(
        self,
        *,
        limit: int,
        per_address: int,
        timeout_s: float,
        exempt: Container[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout_s = timeout_s
        self._limit, self._per_address, self._exempt, self._clock = limit, per_address, exempt, clock
        self._all = _Group()
        self._groups: defaultdict[str, _Group] = defaultdict(_Group)
        self._closed: Counter[str] = Counter()  # reason -> connections, not logged yet
        self._logged_at = -LOG_INTERVAL_S

    def __len__(self) -> int:
        return len(self._all)

    def opened(self, connection: ClientConnection) -> None:
        """Count a new connection; if there are too many, close another one, or refuse this one."""
        self.moved(connection, ConnectionState.RECEIVING)
        group = self._groups[network_of(connection.address)]
        if len(group) > self._per_address and connection.address not in self._exempt:
            self._make_room(group, connection, self._per_address, "beyond the limit of their address")
        elif len(self._all) > self._limit:
            self._make_room(self._all, connection, self._limit, "beyond the limit of this process")

    def moved(self, connection: ClientConnection, state: ConnectionState) -> None:
        for group in (self._all, self._groups[network_of(connection.address)]):
            group.put(connection, state, self._clock())

    def closed(self, connection: ClientConnection) -> None:
        self._all.remove(connection)
        network = network_of(connection.address)
        if group := self._groups.get(network):
            group.remove(connection)
            if not len(group):
                del self._groups[network]

    def sweep(self) -> None:
        """Close the connections whose clients have taken too long; call it every second."""
        for state, reason in (
            (ConnectionState.RECEIVING, f"without a whole request within {self.timeout_s:g} s"),
            (ConnectionState.STALLED, f"whose client took too little of the response within {self.timeout_s:g} s"),
        ):
            for connection in list(self._overdue(state)):
                if connection.expire():
                    self._closed[reason] += 1
                else:
                    self.moved(connection, state)
        for connection in list(self._overdue(ConnectionState.IDLE)):
            if connection.is_closing():  # what is left of its last response is never taken
                connection.evict()
        self._log()

    def _overdue(self, state: ConnectionState) -> Iterator[ClientConnection]:
        limit = self._clock() - self.timeout_s
        return (connection for connection, since in self._all.since[state].items() if since <= limit)

    def _make_room(self, group: _Group, newest: ClientConnection, limit: int, reason: str) -> None:
        victim = group.victim(newest, self._clock(), limit)
        self._closed[reason] += 1
        if victim is None or victim is newest:
            newest.refuse()
            self.closed(newest)
        else:
            victim.evict()
            self.closed(victim)

    def _log(self) -> None:
        """One line per minute at most, however many connections were closed."""
        now = self._clock()
        if self._closed and now - self._logged_at >= LOG_INTERVAL_S:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._closed.items())
            log.warning("closed connections: %s", reasons)
            self._closed.clear()
            self._logged_at = now


def network_of(address: str) -> str:
    """What one client can easily have many addresses in: an IPv6 /64; an IPv4 address is itself."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))


def usable_connections(wanted: int) -> int:
    """At most `wanted`, as the limit on open files allows; raises that limit if the system lets us."""
    needed = 2 * wanted + OTHER_FILES  # a download has a file besides its connection
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    usable = wanted if soft == resource.RLIM_INFINITY else max(8, min(wanted, (soft - OTHER_FILES) // 2))
    if usable < wanted:
        message = "only %d connections instead of %d: the limit on open files is %d; raise it to %d (ulimit -n)"
        log.warning(message, usable, wanted, soft, needed)
    return usable
