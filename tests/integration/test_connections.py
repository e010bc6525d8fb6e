"""Clients that send half requests, read nothing or open too many connections, against a real API process."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services, open_services
from tests.api_process import Api, api_process, is_closed_within
from tests.factories import PROMPT, finish, make_job

TIMEOUT_S = 1.5
VIDEO_BYTES = 24 * 2**20  # more than the kernel's buffers of a connection hold

HEAD = b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
WHOLE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
HALF_REQUESTS = {
    "nothing": b"",
    "half a request line": b"GET /li",
    "half the headers": b"GET /livez HTTP/1.1\r\nhost: localhost\r\n",
    "half a body": HEAD + b"content-length: 100\r\n\r\n{",
    "no body": HEAD + b"content-length: 100\r\n\r\n",
    "half a chunked body": HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    "a body that the route does not read": b"GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n",
    "half a second request": WHOLE + b"GET /livez HTTP",
    "half a body after a request": WHOLE + HEAD + b"content-length: 100\r\n\r\n{",
}


@pytest.fixture(scope="module")
def module_settings(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(redis_url=valkey_server, data_dir=tmp_path_factory.mktemp("data"), auth="off")


@pytest.fixture(scope="module")
def api(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with api_process(module_settings, folder, files=300, IVMIX_REQUEST_TIMEOUT_S=str(TIMEOUT_S)) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def idle(api: Api) -> Iterator[tuple[socket.socket, float]]:
    """A connection that has made one request, before anything else happens, and when that was."""
    with api.connect() as connection:
        assert is_alive(connection)
        yield connection, time.monotonic()


def is_alive(connection: socket.socket) -> bool:
    connection.sendall(WHOLE)
    answer = b""
    while b'{"status":"ok"}' not in answer and (part := connection.recv(65536)):
        answer += part
    return answer.startswith(b"HTTP/1.1 200 OK")


@pytest.fixture
def stored_video(module_settings: Settings, tmp_path: Path) -> Iterator[str]:
    services: Services = open_services(module_settings)
    try:
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        finish(services, job.id, bytes(VIDEO_BYTES), scratch=tmp_path)
        yield f"/v1/videos/{job.id}/content"
    finally:
        services.close()


def test_half_requests_end_at_the_deadline(api: Api) -> None:
    with ExitStack() as stack:
        open_ones = {kind: stack.enter_context(api.connect(sent)) for kind, sent in HALF_REQUESTS.items()}
        time.sleep(TIMEOUT_S / 2)
        assert not [kind for kind, connection in open_ones.items() if is_closed_within(connection, 0.01)]
        late = [kind for kind, connection in open_ones.items() if not is_closed_within(connection, TIMEOUT_S + 20)]
        assert late == []


def test_a_late_request_is_refused(api: Api) -> None:
    with api.connect(HEAD + b"content-length: 9\r\n\r\n{") as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_single_bytes_do_not_extend_the_deadline(api: Api) -> None:
    heads = [b"GET /livez HTTP/1.1\r\nx: ", HEAD + b"content-length: 1000\r\n\r\n"]
    end = time.monotonic() + TIMEOUT_S + 20
    with ExitStack() as stack:
        connections = {stack.enter_context(api.connect(head)) for head in heads}
        while connections and time.monotonic() < end:
            for connection in list(connections):
                try:
                    connection.sendall(b"a")
                except ConnectionError:
                    connections.remove(connection)
            time.sleep(0.1)
    assert not connections


def test_a_slow_request_within_the_deadline_is_answered(api: Api) -> None:
    body = b'{"prompt": "%s"}' % PROMPT.encode()
    with api.connect() as connection:
        for byte in HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body:
            connection.sendall(bytes([byte]))
            time.sleep(0.002)
        assert b" 200 OK" in connection.recv(65536)


def flood(api: Api, stack: ExitStack, sent: bytes, count: int = 300) -> list[socket.socket]:
    return [stack.enter_context(api.connect(sent)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["half the headers", "half a body", "nothing"])
def test_with_few_descriptors_half_requests_do_not_stop_the_others(api: Api, kind: str) -> None:
    lines_before = len(api.log.splitlines())
    with ExitStack() as stack:
        connections = flood(api, stack, HALF_REQUESTS[kind])
        assert min(api.seconds_of_livez() for _ in range(3)) < 2
        assert all(is_closed_within(connection, TIMEOUT_S + 30) for connection in connections)
    assert api.is_alive()
    assert len(api.log.splitlines()) - lines_before < 10


def test_closed_connections_are_logged_once(api: Api) -> None:
    with ExitStack() as stack:
        for connection in flood(api, stack, b"GET", 50):
            assert is_closed_within(connection, TIMEOUT_S + 30)
    assert 1 <= api.log.count("closed connections: ") <= 2 + api.log.count("without a whole request")


def test_invalid_requests_do_not_fill_the_log(api: Api) -> None:
    with ExitStack() as stack:
        for connection in flood(api, stack, b"\x00\r\n\r\n", 50):
            assert b" 400 " in connection.recv(65536)
    assert api.log.count("Invalid HTTP request") <= 2


def download(api: Api, path: str) -> socket.socket:
    return api.connect(b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % path.encode())


def read_to_the_end(connection: socket.socket) -> int:
    """Returns the number of bytes read until the server closed the connection."""
    total = 0
    with suppress(ConnectionError):
        while part := connection.recv(2**20):
            total += len(part)
    return total


def test_a_client_that_does_not_take_its_video_is_disconnected(api: Api, stored_video: str) -> None:
    with download(api, stored_video) as connection:
        time.sleep(2 * (TIMEOUT_S + 1) + 5)  # two timeouts, found by a sweep every second, and room for a busy machine
        assert read_to_the_end(connection) < VIDEO_BYTES


def test_a_slow_but_steady_client_is_not_disconnected(api: Api, stored_video: str) -> None:
    """400 kB per second, so that the whole video would take a minute."""
    total, end = 0, time.monotonic() + 3 * TIMEOUT_S
    with download(api, stored_video) as connection:
        while time.monotonic() < end:
            total += len(connection.recv(40_000))
            time.sleep(0.1)
        assert total + read_to_the_end(connection) > VIDEO_BYTES


def test_an_idle_connection_outlives_floods_and_the_pauses_between_polls(idle: tuple[socket.socket, float]) -> None:
    """Uvicorn's own default is 5 seconds."""
    connection, since = idle
    time.sleep(max(0.0, since + 6 - time.monotonic()))
    assert is_alive(connection)
