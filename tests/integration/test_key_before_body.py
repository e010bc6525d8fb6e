"""Every route that reads a body asks for the API key, and for its scope, before it reads the first byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.api_keys import Scope
from service.settings import Settings
from service.wiring import Services


@pytest.fixture
def app(services: Services) -> FastAPI:
    settings = Settings.model_validate({**services.settings.model_dump(), "auth": "keys"})
    return create_app(replace(services, settings=settings))


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every operation but health and signing in, which read no body, hidden routes included."""
    for template, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            if operation["tags"] not in (["health"], ["session"]):
                yield method.upper(), re.sub(r"\{\w+\}", "video_0", template)
    yield from (("POST", f"/v1/videos/{name}") for name in ("edits", "extensions", "characters"))


async def status_without_body(app: FastAPI, method: str, path: str, key: str | None) -> int:
    """The status of a request whose body never arrives. Reading it fails the test."""
    headers = [(b"host", b"testserver"), (b"content-length", b"60000"), (b"content-type", b"application/json")]
    headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
        "scheme": "http",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError(f"{method} {path} reads the body before it checks the key")

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"]


def test_without_a_key_no_body_is_read(app: FastAPI) -> None:
    checked = 0
    for method, path in operations(app):
        if path.rpartition("/")[2] in ("edits", "extensions", "characters"):
            continue  # not supported, for anybody
        assert anyio.run(status_without_body, app, method, path, None) == 401, (method, path)
        assert anyio.run(status_without_body, app, method, path, "ivm_wrong") == 401, (method, path)
        checked += 1
    assert checked > 20


def test_with_a_key_without_the_scope_no_body_is_read(app: FastAPI, services: Services) -> None:
    made = {scope: services.keys.create("k", scopes=frozenset({scope}))[1] for scope in Scope if scope != Scope.ADMIN}
    refused = dict.fromkeys(made, 0)
    for method, path in operations(app):
        if method != "POST" or path.rpartition("/")[2] in ("edits", "extensions", "characters"):
            continue
        for scope, key in made.items():
            needed = Scope.WEBHOOKS if path.startswith("/v1/webhook") else Scope.WRITE
            if scope != needed:
                assert anyio.run(status_without_body, app, method, path, key) == 403, (method, path, scope)
                refused[scope] += 1
    assert all(refused.values())
