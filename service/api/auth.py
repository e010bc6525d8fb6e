"""Authentication: an API key, or the session of a browser -> Principal with owner, scopes and limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from starlette.concurrency import run_in_threadpool

from service.api.origin_check import is_from_own_page
from service.api.sessions import COOKIE, key_digest
from service.api_keys import ApiKey, Scope, digest_of
from service.errors import NotAllowed, NotAuthenticated
from service.jobs.model import LOCAL
from service.signatures import Signer
from service.wiring import Services

# For the OpenAPI description only; `get_principal` reads the headers.
API_KEY_HEADER = APIKeyHeader(
    scheme_name="ApiKeyHeader",
    name="x-api-key",
    description="The same key, for clients that send it this way.",
    auto_error=False,
)
SESSION = APIKeyCookie(
    scheme_name="Session",
    name=COOKIE,
    description="Set by `POST /v1/session`, for pages of this server.",
    auto_error=False,
)
API_KEY = HTTPBearer(scheme_name="ApiKey", description="A key made by `ivmix keys create`.", auto_error=False)


@dataclass(frozen=True)
class Principal:
    """The authenticated caller.

    Attributes:
        owner: owner of the videos that this caller creates.
        key_id: id of the API key; `owner` without authentication.
        requests_per_minute: limit for requests that create videos; None means no limit.
        max_waiting: limit for queued videos; None means only the server's limit applies.
        gpu_seconds_per_day: limit for GPU time per UTC day; None means no limit.
    """

    owner: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None
    max_waiting: int | None
    key_id: str = LOCAL
    gpu_seconds_per_day: int | None = None

    @property
    def visible_owner(self) -> str | None:
        """The owner whose videos this caller can see; None means every owner."""
        return None if self.scopes & {Scope.ADMIN, Scope.READ_ALL} else self.owner

    def may_change(self, owner: str) -> bool:
        """Whether the caller may cancel and delete the videos of an owner."""
        return Scope.ADMIN in self.scopes or owner == self.owner


ANONYMOUS_ADMIN = Principal(owner=LOCAL, scopes=frozenset(Scope), requests_per_minute=None, max_waiting=None)


# Async although it awaits nothing: FastAPI runs plain functions in its thread pool.
async def get_services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_signer(request: Request) -> Signer:
    """A signer that is used in the event loop: it makes no call to Redis."""
    signer = (await get_services(request)).signer
    if not signer.is_loaded:
        await run_in_threadpool(signer.load)
    return signer


async def get_principal(request: Request) -> Principal:
    """Raises NotAuthenticated if the API key is missing, unknown or revoked."""
    services = await get_services(request)
    if services.settings.auth == "off":
        return ANONYMOUS_ADMIN
    key = await find_key(request, services)
    if key is None:
        raise NotAuthenticated("This API key is unknown or revoked.")
    return _principal(key, services)


async def find_key(request: Request, services: Services) -> ApiKey | None:
    """The key in the headers, else the one of the session. Raises NotAuthenticated if there is neither."""
    digest = await _session_key(request) if uses_session(request) else digest_of(sent_key(request))
    return services.keys.find_cached(digest) or await run_in_threadpool(services.keys.find, digest)


def uses_session(request: Request) -> bool:
    return COOKIE in request.cookies and not set(request.headers) & {"authorization", "x-api-key"}


async def _session_key(request: Request) -> str:
    """The digest of the key that opened the session. Raises NotAuthenticated.

    SameSite=Strict keeps other sites' pages from sending the cookie, and the check of the origin those of sibling
    domains, which browsers count as the same site.
    """
    digest = key_digest(request.cookies[COOKIE], await get_signer(request))
    if digest is None:
        raise NotAuthenticated("The session has expired; sign in again.")
    if request.method not in ("GET", "HEAD") and not is_from_own_page(request.headers):
        raise NotAuthenticated("A session is for pages of this server only; send the API key in a header.")
    return digest


def sent_key(request: Request) -> str:
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


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def _principal(key: ApiKey, services: Services) -> Principal:
    return Principal(
        owner=key.owner,
        scopes=key.scopes,
        requests_per_minute=key.requests_per_minute or services.settings.requests_per_minute,
        max_waiting=key.max_waiting or services.settings.max_waiting_per_key,
        key_id=key.id,
        gpu_seconds_per_day=key.gpu_seconds_per_day or services.settings.gpu_seconds_per_day,
    )


IMPLIED_BY = {Scope.READ: (Scope.READ_ALL,)}


def require_scope(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that raises NotAllowed unless the caller has the scope or one that implies it."""

    async def check(request: Request) -> Principal:
        principal = await get_principal(request)
        if not principal.scopes & {scope, *IMPLIED_BY.get(scope, ()), Scope.ADMIN}:
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
