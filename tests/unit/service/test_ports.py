"""Sockets that a server listens on."""

from __future__ import annotations

import asyncio
import socket

from service.process.ports import bind_port


def test_small_packets_are_sent_at_once() -> None:
    """Otherwise every response on a connection that is kept open takes 40 ms."""

    async def option_of_an_accepted_connection() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection: socket.socket = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        [listening] = bind_port("127.0.0.1", 0, "IVMIX_PORT")
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            option = await accepted
            writer.close()
            return option

    assert asyncio.run(option_of_an_accepted_connection())
