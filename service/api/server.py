"""Uvicorn with bounded connections: see `connections`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service.api.connections import Connections, ConnectionState, usable_connections
from service.api.errors import error_body
from service.settings import Settings

# Connections that one turn of the event loop accepts; they are counted a few turns later. Python 3.11 logs one line for
# each of them that it cannot accept. The kernel's queue is longer.
ACCEPTED_AT_ONCE = 32
LISTEN_QUEUE = 1024
TAKEN_AT_LEAST = 64 * 1024  # bytes of a response that a client must take within the timeout


class JoinedConnection(h11.Connection):
    """Sends the head of a response with the first part of its body: one packet and one system call less.

    Only if the length is known: the first event of a stream may be far away.
    """

    _head: list[bytes] | None = None

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        parts, head = super().send_with_data_passthrough(event), self._head or []
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._head, parts = parts, []
        elif parts is not None:
            self._head, parts = None, [*head, *parts]
        return parts


class BoundedProtocol(H11Protocol):
    """Reports its state to `Connections`, and closes when it says so."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = JoinedConnection(h11.SERVER)
        self._connections = connections
        self._state = ConnectionState.RECEIVING
        self._untaken = 0  # bytes of the response that the client had not taken when the timeout began
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.address = self.client[0] if self.client else ""
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.closed(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = self._count_untaken()
        self._update()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update()

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def evict(self) -> None:
        self._end_request()
        self.transport.abort()

    def refuse(self) -> None:
        body = error_body(503, "Too many connections; try again.", "too_many_connections")
        self._respond(503, body.model_dump_json().encode(), [("retry-after", "2")])

    def expire(self) -> bool:
        if self._state is ConnectionState.STALLED:
            before, self._untaken = self._untaken, self._count_untaken()
            if before - self._untaken >= TAKEN_AT_LEAST:
                return False
            self.evict()
        elif self.flow.read_paused:  # the application is slow, not the client
            return False
        elif not self.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self._has_sent_bytes():
            text = f"The request was not complete after {self._connections.timeout_s:g} s."
            self._end_request()
            self._respond(408, error_body(408, text, "request_timeout").model_dump_json().encode())
        else:
            self.evict()
        return True

    def _update(self) -> None:
        state = self._current_state()
        if state is not self._state and self in self.connections:
            self._state = state
            self._connections.moved(self, state)

    def _current_state(self) -> ConnectionState:
        if self.flow.write_paused:
            return ConnectionState.STALLED
        their_state = self.conn.their_state
        if their_state is h11.SEND_BODY or (their_state is h11.IDLE and self._has_sent_bytes()):
            return ConnectionState.RECEIVING
        return ConnectionState.ACTIVE if self._running_cycle() else ConnectionState.IDLE

    def _running_cycle(self) -> RequestResponseCycle | None:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None until the first request
        return None if cycle is None or cycle.response_complete else cycle

    def _has_sent_bytes(self) -> bool:
        return self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])

    def _end_request(self) -> None:
        """The application sees a client that has disconnected."""
        if cycle := self._running_cycle():
            cycle.disconnected = True
            cycle.message_event.set()

    def _respond(self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        fixed = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=status, headers=[*fixed, *(headers or [])]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _count_untaken(self) -> int:
        """In this process and in the kernel, whose buffer may hold megabytes."""
        connection: socket.socket = self.transport.get_extra_info("socket")
        try:
            (in_kernel,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        except OSError:
            in_kernel = 0
        return self.transport.get_write_buffer_size() + in_kernel


class BoundedServer(uvicorn.Server):
    def __init__(self, app: FastAPI, settings: Settings, port: int, *, max_connections: int | None = None) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=port,
            log_config=None,
            access_log=False,  # status polls would flood it
            server_header=False,
            ws="none",
            backlog=ACCEPTED_AT_ONCE,
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=20,
        )
        self.connections = Connections(
            limit=usable_connections(max_connections or settings.max_connections),
            per_address=settings.max_connections_per_address,
            timeout_s=settings.request_timeout_s,
            exempt=ProxyHeadersMiddleware(cast(Any, app), config.forwarded_allow_ips).trusted_hosts,
        )
        config.http = cast(Any, partial(BoundedProtocol, self.connections))
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as same:
                    same.listen(LISTEN_QUEUE)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # every second
            self.connections.sweep()
        return await super().on_tick(counter)
