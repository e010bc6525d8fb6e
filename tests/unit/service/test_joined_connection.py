"""The head of a response goes out with the first part of its body, but never waits for the events of a stream."""

from __future__ import annotations

import h11

from service.api.server import JoinedConnection


def answering(*headers: tuple[str, str]) -> tuple[JoinedConnection, bytes | None]:
    """A connection that has received a request, and what it sends when a response begins."""
    connection = JoinedConnection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass
    return connection, connection.send(h11.Response(status_code=200, headers=list(headers)))


def test_a_response_of_known_length_is_sent_with_its_body() -> None:
    connection, first = answering(("content-length", "4"))
    assert first == b""
    assert connection.send(h11.Data(data=b"ab")) == b"HTTP/1.1 200 \r\ncontent-length: 4\r\n\r\nab"
    assert connection.send(h11.Data(data=b"cd")) == b"cd"
    assert connection.send(h11.EndOfMessage()) == b""


def test_a_response_without_body_is_sent_at_its_end() -> None:
    connection, first = answering(("content-length", "0"))
    assert first == b""
    assert connection.send(h11.EndOfMessage()) == b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"


def test_a_stream_begins_at_once() -> None:
    connection, first = answering(("content-type", "text/event-stream"))
    assert first is not None
    assert first.startswith(b"HTTP/1.1 200 \r\n")
    assert connection.send(h11.Data(data=b"ab")) == b"2\r\nab\r\n"


def test_a_connection_that_closes_sends_nothing() -> None:
    connection, _ = answering(("content-length", "0"))
    connection.send(h11.EndOfMessage())
    assert connection.send(h11.ConnectionClosed()) is None
