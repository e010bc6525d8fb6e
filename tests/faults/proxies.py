"""A TCP proxy with a door for every process, each of which can be slow, silent or cut. Knows nothing of Redis.

Silent is what a network does that drops packets: nothing passes, nobody hangs up, and what was sent may arrive late.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 65536


@dataclass
class PipeChannel:
    """One door. `open` is clear while nothing passes."""

    delay_s: float = 0.0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None


class Wires:
    def __init__(self, port: int, names: list[str]) -> None:
        """`port` of the server behind, on this machine."""
        self._port, self._names = port, names
        self._wires: dict[str, PipeChannel] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def port(self, name: str) -> int:
        return self._wires[name].port

    def delay(self, name: str, seconds: float) -> None:
        self._wires[name].delay_s = seconds

    def silence(self, name: str) -> None:
        self._loop.call_soon_threadsafe(self._wires[name].open.clear)

    def mend(self, name: str) -> None:
        self._wires[name].delay_s = 0.0
        self._loop.call_soon_threadsafe(self._wires[name].open.set)

    def cut(self, name: str) -> None:
        """Every connection that is there ends; new ones are taken."""
        self._loop.call_soon_threadsafe(self._hang_up, self._wires[name])

    def __enter__(self) -> Wires:
        self._thread.start()
        for name in self._names:
            self._wires[name] = self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _open(self) -> PipeChannel:
        wire = PipeChannel()
        wire.open.set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connect(wire, reader, writer)

        wire.server = await asyncio.start_server(serve, "127.0.0.1", 0)
        wire.port = wire.server.sockets[0].getsockname()[1]
        return wire

    async def _close(self) -> None:
        for wire in self._wires.values():
            if wire.server is not None:
                wire.server.close()
            self._hang_up(wire)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _hang_up(wire: PipeChannel) -> None:
        for writer in wire.writers:
            writer.transport.abort()

    async def _connect(self, wire: PipeChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A server that is down hangs up at once, as its own port would."""
        await wire.open.wait()
        try:
            behind, before = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, before}
        wire.writers |= both
        try:
            await asyncio.gather(self._carry(wire, reader, before), self._carry(wire, behind, writer))
        except OSError:
            pass
        finally:
            for each in both:
                each.transport.abort()
            wire.writers -= both

    @staticmethod
    async def _carry(wire: PipeChannel, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            await wire.open.wait()
            if wire.delay_s:
                await asyncio.sleep(wire.delay_s)
            target.write(data)
            await target.drain()
        raise ConnectionError("one side hung up")  # so does the other
