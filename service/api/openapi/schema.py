"""The OpenAPI description: what FastAPI finds, plus bodies that are read by hand, headers, errors and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.errors import EXAMPLES
from service.api.openapi import examples, webhook_examples
from service.api.parsing import FORMS
from service.api.routes import webhooks as webhook_routes
from service.jobs.model import VideoRequest
from service.jobs.sampling import USES, SamplerSettings

ABOUT = """\
Any OpenAI-style video client works unmodified: set its base URL to this server's `/v1`. Fields and keys beyond OpenAI's
are extensions; clients that do not know them lose nothing.

* **Way of a video**: `POST /v1/videos`, then poll `GET /v1/videos/{id}` (or follow its `/events`) until `status` is
  `completed` or `failed`, then `GET /v1/videos/{id}/content`.
* **Bodies** may be JSON, multipart or urlencoded; in forms `sampler[name]=ddim` and JSON text both make objects. Fields
  of other servers are accepted where they ask for nothing (`n=1`, `enable_upscaling=false`), else refused by name.
* **Errors** are always `{"error": {"message", "type", "param", "code"}}`; quote their `x-request-id`.
* **Repeating**: name a request with `Idempotency-Key`, and sent again within 24 hours it brings the first one's video.
"""

TAGS = [
    {"name": "videos", "description": "Make, follow, fetch and delete videos."},
    {"name": "webhooks", "description": "Be told when a video has ended."},
    {"name": "models", "description": "What this server can draw with, and within which limits."},
    {"name": "queue", "description": "How busy it is."},
    {"name": "health", "description": "For operators; no key needed."},
]

_REF = "#/components/schemas/{model}"

# name -> (schema, what it says)
_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "x-request-id": ({"type": "string"}, "the client's own if it sent one, else made here; it is in the log"),
    "retry-after": ({"type": "integer", "minimum": 1}, "seconds until another try makes sense"),
    "www-authenticate": ({"type": "string", "const": "Bearer"}, "how to authenticate"),
    "openai-poll-after-ms": ({"type": "integer"}, "milliseconds between two polls"),
    "idempotent-replayed": ({"type": "string", "const": "true"}, "there was such a request before: this is its video"),
    "x-video-id": ({"type": "string"}, "id of the video that was made"),
    "x-should-retry": ({"type": "string", "const": "false"}, "sent when repeating would make another video"),
    "etag": ({"type": "string"}, "changes with the content; for If-None-Match and If-Range"),
    "accept-ranges": ({"type": "string", "const": "bytes"}, "Range is understood"),
    "cache-control": ({"type": "string"}, "how long it may be kept"),
    "content-disposition": ({"type": "string"}, "a file name"),
    "content-range": ({"type": "string"}, "which bytes of how many"),
    "location": ({"type": "string", "format": "uri"}, "where the file is, for a while"),
}

_FILE = ("etag", "accept-ranges", "cache-control", "content-disposition")

# (operation, status) -> headers; "*" is every operation. x-request-id is everywhere.
_SENT: dict[tuple[str, str], tuple[str, ...]] = {
    ("*", "401"): ("www-authenticate",),
    ("*", "429"): ("retry-after",),
    ("*", "503"): ("retry-after",),
    ("create_video", "200"): ("openai-poll-after-ms", "idempotent-replayed"),
    ("remix_video", "200"): ("openai-poll-after-ms", "idempotent-replayed"),
    ("retrieve_video", "200"): ("openai-poll-after-ms",),
    ("cancel_video", "200"): ("openai-poll-after-ms",),
    ("follow_video", "200"): ("cache-control",),
    ("create_video_sync", "200"): ("x-video-id", "idempotent-replayed", "content-disposition"),
    ("create_video_sync", "400"): ("x-video-id", "x-should-retry"),
    ("create_video_sync", "500"): ("x-video-id", "x-should-retry"),
    ("create_video_sync", "504"): ("x-video-id", "x-should-retry"),
    ("download_video", "200"): _FILE,
    ("download_video", "206"): (*_FILE, "content-range"),
    ("download_video", "304"): _FILE,
    ("download_video", "307"): ("location", "cache-control"),
    ("download_video", "416"): ("content-range",),
}

_METADATA: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "only videos with these pairs: metadata[project]=shapes",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "example": {},
}

_BODIES = {"create_video": examples.REQUESTS, "create_video_sync": examples.REQUESTS, "remix_video": examples.REMIXES}


def contract(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
            webhooks=webhook_routes.events.routes,
        )
        found["paths"] = _in_reading_order(found["paths"])
        _add_schemas(found["components"]["schemas"])
        answers = examples.answers() | webhook_examples.answers()
        for path in found["paths"].values():
            for operation in path.values():
                _describe_body(operation)
                _describe_parameters(operation)
                _describe_responses(operation, answers.get(operation["operationId"], {}))
        for path in found["webhooks"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        if app.state.services.settings.auth == "off":
            _remove_refusals(found)
        else:
            _add_security(found)
        app.openapi_schema = found
    return app.openapi_schema


def _in_reading_order(paths: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Creating first; routes are declared in the order in which they are asked for."""
    methods = ("post", "get", "delete")
    first = sorted(paths.items(), key=lambda path: path[0] != "/v1/videos")
    return {name: dict(sorted(path.items(), key=lambda one: methods.index(one[0]))) for name, path in first}


def _add_schemas(schemas: dict[str, Any]) -> None:
    """Of what FastAPI does not see: bodies are read and events are written by hand."""
    _, described = models_json_schema(
        [(VideoRequest, "validation"), (SamplerSettings, "validation")], ref_template=_REF
    )
    found: dict[str, Any] = described["$defs"]
    fields = found["VideoRequest"]["properties"]
    # A client may name some of the settings, or only the sampler.
    fields["sampler"]["anyOf"] = [
        {"$ref": _REF.format(model="SamplerSettings")},
        {"type": "string", "enum": list(USES)},
        {"type": "null"},
    ]
    fields["seconds"]["anyOf"].insert(1, {"type": "string", "pattern": r"^\d+(\.\d+)?$"})  # as OpenAI has it
    for name in ("VideoRequest", "Priority"):
        schemas.setdefault(name, found[name])
    schemas["VideoForm"] = _without_nulls(schemas["VideoRequest"])
    for schema in ("HTTPValidationError", "ValidationError"):
        schemas.pop(schema, None)


def _describe_body(operation: dict[str, Any]) -> None:
    known = webhook_examples.REQUESTS.get(operation["operationId"])
    if known is not None:
        described = operation["requestBody"]["content"]["application/json"]
        described["examples"] = {name: {"value": value} for name, value in known.items()}
    named = _BODIES.get(operation["operationId"])
    if named is None:
        return
    examples = {name: {"value": value} for name, value in named.items()}
    kinds = {"application/json": "VideoRequest", **dict.fromkeys(FORMS, "VideoForm")}
    operation["requestBody"] = {
        "required": True,
        "content": {
            kind: {"schema": {"$ref": _REF.format(model=model)}, "examples": examples} for kind, model in kinds.items()
        },
    }


def _without_nulls(model: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: what is not meant is left out."""
    fields = {name: _not_null(schema) for name, schema in model["properties"].items()}
    return model | {"title": "VideoForm", "properties": fields}


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default", "title")}
    if "anyOf" not in schema:
        return schema
    return rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _describe_parameters(operation: dict[str, Any]) -> None:
    if operation["operationId"] == "list_videos":
        operation["parameters"].append(_METADATA)
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _not_null(parameter["schema"])
        for name in ("description", "title"):  # said beside the schema already
            parameter["schema"].pop(name, None)


def _describe_responses(operation: dict[str, Any], examples_of_success: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    operation["responses"] = dict(sorted(responses.items()))
    for status, response in responses.items():
        names = ("x-request-id", *_SENT.get(("*", status), ()), *_SENT.get((operation["operationId"], status), ()))
        response["headers"] = {name: _header(name) for name in names}
        if response["description"] == "Successful Response":
            response["description"] = operation["summary"]
        if status == "200" and examples_of_success:
            [content] = response["content"].values()
            content["examples"] = {name: {"value": value} for name, value in examples_of_success.items()}
        elif int(status) >= 400:
            response["content"]["application/json"]["example"] = {"error": EXAMPLES[int(status)]}


def _header(name: str) -> dict[str, Any]:
    schema, description = _HEADERS[name]
    return {"description": description, "schema": schema}


def _add_security(found: dict[str, Any]) -> None:
    description = "A key made by `ivmix keys create`."
    found["components"]["securitySchemes"] = {
        "ApiKey": {"type": "http", "scheme": "bearer", "description": description}
    }
    for path in found["paths"].values():
        for operation in path.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"ApiKey": []}]


def _remove_refusals(found: dict[str, Any]) -> None:
    """This server asks nobody for a key, so its own description must not tell what happens without one."""
    for path in found["paths"].values():
        for operation in path.values():
            for status in ("401", "403"):
                operation["responses"].pop(status, None)
