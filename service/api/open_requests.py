"""Limits on long-lived requests (event streams, create-and-wait, webhook tests), and their end on shutdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from threading import Event, Lock

from fastapi import Request

from service.api.connections import network_of
from service.errors import RateLimited
from service.settings import Settings


class OpenRequests:
    """Counts per client, so that one client cannot take every slot."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = Event()  # set on shutdown; long-lived requests check it
        self._settings = settings
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    @asynccontextmanager
    async def slot(self, request: Request, owner: str) -> AsyncGenerator[None]:
        """Raises RateLimited if too many are open."""
        client, total, own = client_of(request, owner), self._settings.max_held, self._settings.max_held_per_key
        whose = "this API key" if self._settings.auth == "keys" else "this address"
        with self._lock:
            if self._counts[client] >= own:
                raise _too_many(f"limit {own} for {whose}, IVMIX_MAX_HELD_PER_KEY")
            if self._counts.total() >= total:
                raise _too_many(f"limit {total} for all clients, IVMIX_MAX_HELD")
            self._counts[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts -= Counter([client])  # forgets a client without requests


def client_of(request: Request, owner: str) -> str:
    """Whose share a request counts against: its key's owner; without keys its address, or IPv6 /64 network."""
    settings: Settings = request.app.state.services.settings
    return owner if settings.auth == "keys" or request.client is None else network_of(request.client.host)


def _too_many(limit: str) -> RateLimited:
    return RateLimited(f"Too many open streaming requests ({limit}). Poll the status instead.", 10)
