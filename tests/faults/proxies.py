"""TCP proxies, one per process, that can be slow, silent or cut.

Silent means what a network does that drops packets: nothing passes, no connection closes, and data that was sent may
arrive late.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 65536


@dataclass
class Link:
    """One process's proxy. `open` is clear while it is silent."""

    delay_s: float = 0.0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None


class TcpProxies:
    """A context: one proxy per name, all to one server on 127.0.0.1."""

    def __init__(self, port: int, names: list[str]) -> None:
        self._port, self._names = port, names
        self._links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def port(self, name: str) -> int:
        return self._links[name].port

    def delay(self, name: str, seconds: float) -> None:
        self._links[name].delay_s = seconds

    def silence(self, name: str) -> None:
        self._loop.call_soon_threadsafe(self._links[name].open.clear)

    def repair(self, name: str) -> None:
        self._links[name].delay_s = 0.0
        self._loop.call_soon_threadsafe(self._links[name].open.set)

    def cut(self, name: str) -> None:
        """Close every open connection; new ones are accepted."""
        self._loop.call_soon_threadsafe(self._close_connections, self._links[name])

    def __enter__(self) -> TcpProxies:
        self._thread.start()
        for name in self._names:
            self._links[name] = self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _open(self) -> Link:
        link = Link()
        link.open.set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connect(link, reader, writer)

        link.server = await asyncio.start_server(serve, "127.0.0.1", 0)
        link.port = link.server.sockets[0].getsockname()[1]
        return link

    async def _close(self) -> None:
        for link in self._links.values():
            if link.server is not None:
                link.server.close()
            self._close_connections(link)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _close_connections(link: Link) -> None:
        for writer in link.writers:
            writer.transport.abort()

    async def _connect(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """If the server is down, close the connection at once, as its own port would."""
        await link.open.wait()
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, upstream_writer}
        link.writers |= both
        try:
            await asyncio.gather(
                self._forward(link, reader, upstream_writer), self._forward(link, upstream_reader, writer)
            )
        except OSError:
            pass
        finally:
            for each in both:
                each.transport.abort()
            link.writers -= both

    @staticmethod
    async def _forward(link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            await link.open.wait()
            if link.delay_s:
                await asyncio.sleep(link.delay_s)
            target.write(data)
            await target.drain()
        raise ConnectionError("one side closed the connection")  # closes the other one too
