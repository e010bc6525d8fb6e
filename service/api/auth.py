"""Who is asking, from the key in the Authorization header. Knows nothing of what is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from service.api_keys import ApiKey, Scope
from service.errors import NotAllowed, NotAuthenticated
from service.jobs.model import LOCAL
from service.wiring import Services


@dataclass(frozen=True)
class Principal:
    """Whose videos are made and seen, and how much of it is allowed; None means no limit of its own."""

    owner: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None
    max_waiting: int | None

    @property
    def sees(self) -> str | None:
        """The owner whose videos are shown; None for all."""
        return None if Scope.ADMIN in self.scopes else self.owner


ANONYMOUS_ADMIN = Principal(owner=LOCAL, scopes=frozenset(Scope), requests_per_minute=None, max_waiting=None)


# Async, like every dependency that has nothing to wait for: a plain one would cost a hop to the thread pool. And flat,
# because every dependency of a dependency costs a poll as much as its answer does; the contract tells of the key.
async def get_services(request: Request) -> Services:
    return request.app.state.services


Wired = Annotated[Services, Depends(get_services)]


async def get_principal(request: Request) -> Principal:
    """Raises NotAuthenticated."""
    services: Services = request.app.state.services
    if services.settings.auth == "off":
        return ANONYMOUS_ADMIN
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not (secret := secret.strip()):
        raise NotAuthenticated("Send an API key in the header 'Authorization: Bearer ...'.")
    key = services.keys.remembered(secret) or await run_in_threadpool(services.keys.find, secret)
    if key is None:
        raise NotAuthenticated("This API key is not known here, or was revoked.")
    return _principal(key, services)


def _principal(key: ApiKey, services: Services) -> Principal:
    return Principal(
        owner=key.owner,
        scopes=key.scopes,
        requests_per_minute=key.requests_per_minute or services.settings.requests_per_minute,
        max_waiting=key.max_waiting or services.settings.max_waiting_per_key,
    )


def allowed(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that lets in who has the scope; `admin` has all."""

    async def check(request: Request) -> Principal:
        principal = await get_principal(request)
        if not principal.scopes & {scope, Scope.ADMIN}:
            raise NotAllowed(f"This API key lacks the scope '{scope}'.")
        return principal

    return check


get_reader = allowed(Scope.READ)
Reader = Annotated[Principal, Depends(get_reader)]
Writer = Annotated[Principal, Depends(allowed(Scope.WRITE))]


async def get_webhook_owner(request: Request) -> str:
    return (await allowed(Scope.WEBHOOKS)(request)).owner


WebhookOwner = Annotated[str, Depends(get_webhook_owner)]
