"""The OpenAPI description: what FastAPI finds, plus the body that `bodies.py` reads by hand, minus FastAPI's errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api import webhook_routes
from service.api.bodies import FORMS
from service.jobs import SamplerSettings, VideoRequest

_REF = "#/components/schemas/{model}"


def contract(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
            webhooks=webhook_routes.events.routes,
        )
        _describe_body(found)
        _tidy_responses(found)
        app.openapi_schema = found
    return app.openapi_schema


def _describe_body(found: dict[str, Any]) -> None:
    _, described = models_json_schema(
        [(VideoRequest, "validation"), (SamplerSettings, "validation")], ref_template=_REF
    )
    schemas: dict[str, Any] = described["$defs"]
    # A client may name some of the settings, or only the sampler.
    schemas["VideoRequest"]["properties"]["sampler"]["anyOf"] = [
        {"$ref": _REF.format(model="SamplerSettings")},
        {"type": "string", "enum": ["iv-mixed", "ddim"]},
        {"type": "null"},
    ]
    found["components"]["schemas"] |= {"VideoRequest": schemas["VideoRequest"]}
    body = {"schema": {"$ref": _REF.format(model="VideoRequest")}}
    found["paths"]["/v1/videos"]["post"]["requestBody"] = {
        "required": True,
        "content": dict.fromkeys(("application/json", *FORMS), body),
    }


def _tidy_responses(found: dict[str, Any]) -> None:
    for path in (*found["paths"].values(), *found["webhooks"].values()):
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"] = dict(sorted(operation["responses"].items()))
    for schema in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(schema, None)
