"""An address that opens too many connections loses its own; an address behind a trusted proxy has no such limit."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.settings import Settings
from tests.api_process import Api, api_process, is_closed_within

LIMIT = 5
WHOLE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
FLOODER, OTHER, PROXY = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(redis_url=valkey_server, data_dir=tmp_path_factory.mktemp("data"), auth="off")
    limits = {"IVMIX_MAX_CONNECTIONS_PER_ADDRESS": str(LIMIT), "IVMIX_TRUSTED_PROXIES": PROXY}
    with api_process(settings, tmp_path_factory.mktemp("api"), **limits) as started:
        yield started


def connect(api: Api, stack: ExitStack, source: str, count: int, sent: bytes = WHOLE) -> list[socket.socket]:
    return [stack.enter_context(api.connect(sent, source=source)) for _ in range(count)]


def count_open(connections: list[socket.socket]) -> int:
    time.sleep(0.3)
    return sum(not is_closed_within(connection, 0.02) for connection in connections)


@pytest.mark.parametrize("sent", [WHOLE, b"GET /li", b""], ids=["idle", "half", "silent"])
def test_an_address_has_its_limit_and_takes_nothing_from_others(api: Api, sent: bytes) -> None:
    with ExitStack() as stack:
        others = connect(api, stack, OTHER, LIMIT)
        assert count_open(connect(api, stack, FLOODER, 4 * LIMIT, sent)) == LIMIT
        assert count_open(others) == LIMIT
        assert api.is_alive()


def test_a_trusted_proxy_may_have_more(api: Api) -> None:
    with ExitStack() as stack:
        assert count_open(connect(api, stack, PROXY, 4 * LIMIT)) == 4 * LIMIT
