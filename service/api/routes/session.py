"""/v1/session: a browser signs in with an API key once; then no script of the page needs to keep the key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import PrincipalDep, ServicesDep, find_key, get_signer, sent_key, uses_session
from service.api.openapi.responses import success
from service.api.schemas import DeletedSession, Session
from service.api.sessions import COOKIE, LIFETIME_S, expires_at, new_cookie
from service.api_keys import Scope, digest_of
from service.wiring import Services

router = APIRouter(prefix="/v1", tags=["session"])


@router.post(
    "/session",
    summary="Sign in",
    description="Sets a cookie that stands for the API key of this request, for a week and until the key is revoked. "
    "Scripts cannot read it, and browsers send it from pages of this server only.",
    responses=success("Session", headers=("set-cookie",)),
)
async def create_session(
    request: Request, response: Response, principal: PrincipalDep, services: ServicesDep
) -> Session:
    if services.settings.auth == "off":
        return await _session(request, services, principal.scopes)
    cookie, until = new_cookie(digest_of(sent_key(request)), await get_signer(request))
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=LIFETIME_S,
        path=services.settings.root_path or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return (await _session(request, services, principal.scopes)).model_copy(update={"expires_at": until})


@router.get("/session", summary="Who am I", responses=success("Session"))
async def retrieve_session(request: Request, principal: PrincipalDep, services: ServicesDep) -> Session:
    return await _session(request, services, principal.scopes)


@router.delete("/session", summary="Sign out", responses=success("DeletedSession", headers=("set-cookie",)))
async def delete_session(response: Response, _principal: PrincipalDep, services: ServicesDep) -> DeletedSession:
    response.delete_cookie(COOKIE, path=services.settings.root_path or "/", httponly=True, samesite="strict")
    return DeletedSession()


async def _session(request: Request, services: Services, scopes: frozenset[Scope]) -> Session:
    if services.settings.auth == "off":
        return Session(auth="off", name=None, scopes=sorted(scopes), expires_at=None)
    key = await find_key(request, services)
    assert key is not None
    until = expires_at(request.cookies[COOKIE]) if uses_session(request) else None
    return Session(auth="keys", name=key.name, scopes=sorted(key.scopes), expires_at=until)
