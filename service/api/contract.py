"""Looks up in the OpenAPI description what a path accepts, and refuses queries that it does not describe."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response, with_head
from service.api.request_path import route_path
from service.validation_messages import unknown_parameter

Parameters = dict[str, dict[str, Any]]  # described query parameters by name

NOTHING: dict[str, Any] = {}


class Contract:
    """The description is made at the first look-up, when every route has been added."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._patterns: list[tuple[re.Pattern[str], dict[str, Any]]] = []

    def operations(self, scope: Scope) -> dict[str, Any]:
        """The operations of the requested path by method, in lower case; empty for a path that is not described."""
        if not self._patterns:
            paths: dict[str, Any] = self._app.openapi()["paths"]
            self._patterns = [
                (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), operations)
                for template, operations in sorted(paths.items(), key=lambda path: path[0].count("{"))
            ]
        path = route_path(scope)
        return next((found for pattern, found in self._patterns if pattern.fullmatch(path)), NOTHING)

    def methods(self, scope: Scope) -> list[str]:
        """The methods of the requested path."""
        return with_head([method.upper() for method in self.operations(scope)])


class QueryCheck:
    """ASGI middleware: an unknown, repeated or empty parameter is refused instead of ignored."""

    def __init__(self, app: ASGIApp, contract: Contract) -> None:
        self._app, self._contract = app, contract

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["query_string"]:
            operation = self._contract.operations(scope).get(scope["method"].lower())
            if operation is not None:
                pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
                parameters = {
                    found["name"]: found for found in operation.get("parameters", ()) if found["in"] == "query"
                }
                pairs = [(_without_brackets(name, parameters), value) for name, value in pairs]
                if problem := _problem(pairs, parameters):
                    param, message, code = problem
                    return await error_response(400, message, code=code, param=param)(scope, receive, send)
                scope = {**scope, "query_string": urlencode(pairs).encode()}
        await self._app(scope, receive, send)


def _without_brackets(name: str, parameters: Parameters) -> str:
    """The OpenAI SDKs and PHP write a list as a[]=1&a[]=2."""
    base = name.removesuffix("[]")
    return base if base != name and base in parameters and _is_list(parameters[base]["schema"]) else name


def _problem(pairs: list[tuple[str, str]], parameters: Parameters) -> tuple[str, str, str] | None:
    """Parameter, message and error code of the first problem."""
    seen: set[str] = set()
    for name, value in pairs:
        parameter = parameters.get(name.partition("[")[0])
        if parameter is None or (parameter.get("style") == "deepObject") != ("[" in name):
            return name[:80], _unknown(name[:80], parameters), "unknown_parameter"
        if not value and parameter["schema"].get("type") != "object":
            return name, f"'{name}' is empty; send {_accepted(parameter['schema'])}, or leave it out.", "invalid_value"
        if name in seen and not _is_list(parameter["schema"]):
            return name, f"'{name}' is given more than once; send one value.", "invalid_value"
        seen.add(name)
    return None


def _unknown(name: str, parameters: Parameters) -> str:
    """Names the nearest parameter, or all."""
    names = [f"{known}[...]" if found.get("style") == "deepObject" else known for known, found in parameters.items()]
    message = unknown_parameter(name, names, kind="query parameter")
    if message.endswith("?"):
        return message
    return f"{message} Supported are: {', '.join(names)}." if names else f"{message} This endpoint has none."


def _is_list(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "array" or any(_is_list(kind) for kind in schema.get("anyOf", ()))


def _accepted(schema: dict[str, Any]) -> str:
    """What a schema accepts, in words."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "minimum" in schema and "maximum" in schema:
        return f"a number from {schema['minimum']} to {schema['maximum']}"
    return "a value"
