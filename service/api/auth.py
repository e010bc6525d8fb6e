"""API key authentication: the Authorization header -> Principal with owner, scopes and limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.concurrency import run_in_threadpool

from service.api_keys import ApiKey, Scope
from service.errors import NotAllowed, NotAuthenticated
from service.jobs.model import LOCAL
from service.wiring import Services

# For the OpenAPI description only; `get_principal` reads the headers.
API_KEY_HEADER = APIKeyHeader(
    scheme_name="ApiKeyHeader",
    name="x-api-key",
    description="The same key, for clients that send it this way.",
    auto_error=False,
)
API_KEY = HTTPBearer(scheme_name="ApiKey", description="A key made by `ivmix keys create`.", auto_error=False)


@dataclass(frozen=True)
class Principal:
    """The authenticated caller.

    Attributes:
        owner: owner of the videos that this caller creates.
        requests_per_minute: limit for requests that create videos; None means no limit.
        max_waiting: limit for queued videos; None means only the server's limit applies.
    """

    owner: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None
    max_waiting: int | None

    @property
    def visible_owner(self) -> str | None:
        """The owner whose videos this caller can see; None means every owner."""
        return None if Scope.ADMIN in self.scopes else self.owner


ANONYMOUS_ADMIN = Principal(owner=LOCAL, scopes=frozenset(Scope), requests_per_minute=None, max_waiting=None)


# Async although it awaits nothing: FastAPI runs plain functions in its thread pool.
async def get_services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_principal(request: Request) -> Principal:
    """Raises NotAuthenticated if the API key is missing, unknown or revoked."""
    services = await get_services(request)
    if services.settings.auth == "off":
        return ANONYMOUS_ADMIN
    secret = _sent_key(request)
    key = services.keys.find_cached(secret) or await run_in_threadpool(services.keys.find, secret)
    if key is None:
        raise NotAuthenticated("This API key is unknown or revoked.")
    return _principal(key, services)


def _sent_key(request: Request) -> str:
    """Raises NotAuthenticated if there is none, or if the two headers hold different keys."""
    sent = {key.strip() for key in request.headers.getlist("x-api-key")}
    for header in request.headers.getlist("authorization"):
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthenticated("Send the API key as 'Authorization: Bearer ...'; other schemes are not supported.")
        sent.add(secret.strip())
    if len(sent) > 1:
        raise NotAuthenticated("The headers Authorization and x-api-key hold different API keys; send one.")
    if not sent or "" in sent:
        raise NotAuthenticated("Send an API key in the header 'Authorization: Bearer ...' or 'x-api-key: ...'.")
    return sent.pop()


def _principal(key: ApiKey, services: Services) -> Principal:
    return Principal(
        owner=key.owner,
        scopes=key.scopes,
        requests_per_minute=key.requests_per_minute or services.settings.requests_per_minute,
        max_waiting=key.max_waiting or services.settings.max_waiting_per_key,
    )


def require_scope(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that raises NotAllowed unless the caller has the scope; `admin` implies every scope."""

    async def check(request: Request) -> Principal:
        principal = await get_principal(request)
        if not principal.scopes & {scope, Scope.ADMIN}:
            raise NotAllowed(f"This API key lacks the scope '{scope}'.")
        return principal

    return check


get_reader = require_scope(Scope.READ)
Reader = Annotated[Principal, Depends(get_reader)]
get_writer = require_scope(Scope.WRITE)
Writer = Annotated[Principal, Depends(get_writer)]


async def get_webhook_owner(request: Request) -> str:
    return (await require_scope(Scope.WEBHOOKS)(request)).owner


WebhookOwner = Annotated[str, Depends(get_webhook_owner)]
