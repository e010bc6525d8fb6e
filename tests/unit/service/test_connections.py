"""Which connection goes when there are too many, and when a client has taken too long; with a clock of the test."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest

from service.api.connections import OTHER_FILES, Connections, ConnectionState, network_of, usable_connections

TIMEOUT_S = 30.0


class Peer:
    """A connection that records what happens to it."""

    def __init__(self, address: str = "192.0.2.1", *, makes_progress: bool = False, is_closing: bool = False) -> None:
        self.address = address
        self.makes_progress, self.closing = makes_progress, is_closing
        self.end: str | None = None

    def expire(self) -> bool:
        if not self.makes_progress:
            self.end = "expired"
        return not self.makes_progress

    def evict(self) -> None:
        self.end = "evicted"

    def refuse(self) -> None:
        self.end = "refused"

    def is_closing(self) -> bool:
        return self.closing


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connections(clock: Clock) -> Connections:
    return Connections(limit=8, per_address=7, timeout_s=TIMEOUT_S, exempt={"10.0.0.1"}, clock=clock)


def add(connections: Connections, *peers: Peer, state: ConnectionState = ConnectionState.RECEIVING) -> list[Peer]:
    for peer in peers:
        connections.opened(peer)
        connections.moved(peer, state)
    return list(peers)


def others(count: int) -> list[Peer]:
    return [Peer(f"198.51.100.{i}") for i in range(count)]


def test_a_burst_of_half_requests_does_not_cost_the_idle_connections(connections: Connections) -> None:
    """However young they are."""
    idle = add(connections, *others(4), state=ConnectionState.IDLE)
    half = add(connections, *(Peer("203.0.113.1") for _ in range(40)))
    assert [peer.end for peer in idle] == [None] * 4
    assert [peer.end for peer in half] == ["evicted"] * 36 + [None] * 4


def test_a_half_request_goes_before_an_idle_connection(connections: Connections, clock: Clock) -> None:
    idle = add(connections, *others(7), state=ConnectionState.IDLE)
    (half,) = add(connections, Peer("203.0.113.1"))
    clock.now += 2
    (newest,) = add(connections, Peer("203.0.113.2"))
    assert [peer.end for peer in (*idle, half, newest)] == [None] * 7 + ["evicted", None]


def test_a_request_that_has_just_begun_stays_and_the_one_idle_for_longest_goes(
    connections: Connections, clock: Clock
) -> None:
    begun = add(connections, Peer())
    idle = add(connections, *others(6), state=ConnectionState.IDLE)
    clock.now += 0.1
    idle += add(connections, Peer("203.0.113.2"), state=ConnectionState.IDLE)
    add(connections, Peer("203.0.113.3"))
    assert [peer.end for peer in (*begun, *idle)] == [None, "evicted"] + [None] * 6


def test_a_client_that_takes_no_response_goes_too(connections: Connections, clock: Clock) -> None:
    active = add(connections, *others(7), state=ConnectionState.ACTIVE)
    (stalled,) = add(connections, Peer("203.0.113.1"), state=ConnectionState.STALLED)
    clock.now += 2
    add(connections, Peer("203.0.113.2"))
    assert [peer.end for peer in (*active, stalled)] == [None] * 7 + ["evicted"]


def test_if_all_are_at_work_the_newest_is_refused(connections: Connections) -> None:
    active = add(connections, *others(8), state=ConnectionState.ACTIVE)
    newest = Peer("203.0.113.1")
    connections.opened(newest)
    assert [peer.end for peer in (*active, newest)] == [None] * 8 + ["refused"]
    assert len(connections) == 8


def test_beyond_its_limit_an_address_loses_its_own_connection(connections: Connections, clock: Clock) -> None:
    (other,) = add(connections, Peer("203.0.113.1"))
    clock.now += 2
    own = add(connections, *(Peer() for _ in range(7)))
    clock.now += 2
    add(connections, Peer())
    assert [peer.end for peer in (other, *own)] == [None, "evicted"] + [None] * 6


def test_an_exempt_address_has_only_the_limit_of_the_process(connections: Connections, clock: Clock) -> None:
    proxied = add(connections, *(Peer("10.0.0.1") for _ in range(8)))
    assert [peer.end for peer in proxied] == [None] * 8
    clock.now += 2
    add(connections, Peer("10.0.0.1"))
    assert [peer.end for peer in proxied] == ["evicted"] + [None] * 7


def test_a_closed_connection_makes_room(connections: Connections) -> None:
    peers = add(connections, *others(8), state=ConnectionState.ACTIVE)
    connections.closed(peers[0])
    connections.closed(peers[0])
    add(connections, Peer())
    assert len(connections) == 8
    assert [peer.end for peer in peers] == [None] * 8


@pytest.mark.parametrize("state", [ConnectionState.RECEIVING, ConnectionState.STALLED])
def test_what_takes_too_long_ends_unless_it_makes_progress(
    connections: Connections, clock: Clock, state: ConnectionState
) -> None:
    slow, steady = add(connections, Peer(), Peer(makes_progress=True), state=state)
    clock.now += TIMEOUT_S - 1
    connections.sweep()
    assert (slow.end, steady.end) == (None, None)
    clock.now += 1
    connections.sweep()
    assert (slow.end, steady.end) == ("expired", None)
    connections.closed(slow)
    steady.makes_progress = False
    clock.now += TIMEOUT_S - 1
    connections.sweep()
    assert steady.end is None
    clock.now += 1
    connections.sweep()
    assert steady.end == "expired"


@pytest.mark.parametrize(("is_closing", "end"), [(True, "evicted"), (False, None)])
def test_an_idle_connection_ends_by_keep_alive_unless_it_cannot_be_closed(
    connections: Connections, clock: Clock, is_closing: bool, end: str | None
) -> None:
    (idle,) = add(connections, Peer(is_closing=is_closing), state=ConnectionState.IDLE)
    clock.now += TIMEOUT_S
    connections.sweep()
    assert idle.end == end


def test_many_closed_connections_are_one_line_per_minute(
    connections: Connections, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ivmix.connections"):
        for _ in range(100):
            add(connections, Peer())
            clock.now += 1.1
            connections.sweep()
    assert [len(caplog.messages), "limit of their address" in caplog.messages[-1]] == [2, True]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_the_addresses_of_one_ipv6_network_are_one_client(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.fixture
def file_limit() -> Iterator[int]:
    """The hard limit; the soft one is restored afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_on_open_files_is_raised_if_that_is_allowed(file_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, file_limit))
    assert usable_connections(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 800 + OTHER_FILES


def test_connections_fit_into_the_limit_on_open_files(file_limit: int, caplog: pytest.LogCaptureFixture) -> None:
    assert usable_connections(file_limit) == (file_limit - OTHER_FILES) // 2
    assert "ulimit -n" in caplog.text
