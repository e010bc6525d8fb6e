"""The OpenAPI document: what FastAPI generates from the routes, plus the shared components that routes refer to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.errors import ErrorBody
from service.api.openapi.examples import examples
from service.api.openapi.responses import ERROR_RESPONSES, HEADERS, ref
from service.jobs.lora_choice import LORA_TEXT
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES

DESCRIPTION = """\
Any OpenAI video client works unmodified: set its base URL to this server's `/v1`. Fields beyond OpenAI's are
extensions; clients that do not know them can ignore them.

* **Lifecycle**: `POST /v1/videos`, then poll `GET /v1/videos/{id}` (or stream its `/events`) until `status` is
  `completed` or `failed`, then `GET /v1/videos/{id}/content`.
* **Bodies** can be JSON, multipart or urlencoded; in forms, objects are written as `sampler[name]=ddim` or as JSON
  text. Fields of other servers are accepted when they have no effect (`n=1`, `enable_upscaling=false`) and rejected by
  name otherwise.
* **Errors** are always `{"error": {"message", "type", "param", "code"}}`; quote their `x-request-id`.
* **Retries**: a request repeated with the same `Idempotency-Key` within 24 hours returns the video of the first one.
"""

# What JSON can contain as `input_reference`.
REFERENCES: list[dict[str, Any]] = [
    {"type": "string", "pattern": "^data:[^,]*;base64,"},
    {"type": "string", "pattern": "^video_[0-9a-f]{32}$"},
    {
        "type": "object",
        "properties": {
            name: {"anyOf": [{"type": "string"}, {"type": "null"}]} for name in ("image_url", "video_id", "file_id")
        },
        "additionalProperties": False,
        "description": "One of them: a data URL as image_url, or the id of a video as video_id or file_id",
    },
]

TAGS = [
    {"name": "videos", "description": "Create, follow, download and delete videos."},
    {"name": "webhooks", "description": "Get notified when a video completes or fails."},
    {"name": "models", "description": "Available models and their limits."},
    {"name": "queue", "description": "Queue depth, workers and estimated wait."},
    {"name": "usage", "description": "Videos, GPU seconds and bytes by day and API key."},
    {"name": "session", "description": "Signing in, for pages in a browser."},
    {"name": "health", "description": "Probes and metrics for operators; no API key needed."},
]


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI has no way to add shared components, and documents a 422 body that `errors` never sends."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas: dict[str, Any] = document["components"]["schemas"]
        schemas |= _request_schemas()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in (*document["paths"].values(), *document["webhooks"].values()):
            for operation in path.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        document["components"] |= {
            "headers": HEADERS,
            "responses": ERROR_RESPONSES,
            "examples": {name: {"value": value} for name, value in examples().items()},
        }
    assert app.openapi_schema is not None
    return app.openapi_schema


def _request_schemas() -> dict[str, Any]:
    """Schemas that FastAPI does not see: `parsing` reads the bodies, and `errors` writes them."""
    _, generated = models_json_schema(
        [(VideoRequest, "validation"), (ErrorBody, "serialization")], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = generated["$defs"]
    fields: dict[str, Any] = schemas["VideoRequest"]["properties"]
    fields["sampler"]["anyOf"] = [
        ref("schemas", "SamplerSettings"),
        {"type": "string", "enum": list(USES)},
        {"type": "null"},
    ]
    loras = fields["loras"]["anyOf"]
    loras[0]["items"] = {"anyOf": [loras[0]["items"], {"type": "string", "pattern": LORA_TEXT}]}
    fields["seconds"]["anyOf"].insert(1, {"type": "string", "pattern": r"^\d+(\.\d+)?$"})  # OpenAI's type
    fields["input_reference"]["anyOf"] = [*REFERENCES, {"type": "null"}]
    schemas.pop("ReferenceFile", None)
    form_fields = {name: _without_null(field) for name, field in fields.items()}
    form_fields["input_reference"]["anyOf"].insert(0, {"type": "string", "format": "binary"})
    form = {"title": "VideoForm", "properties": form_fields}
    changes = {name: part for name, part in schemas["VideoRequest"].items() if name != "required"}
    return schemas | {
        "VideoForm": schemas["VideoRequest"] | form,
        "VideoChanges": changes | {"title": "VideoChanges", "description": "Changes of the source's settings."},
    }


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: optional fields are left out."""
    if "anyOf" not in field:
        return field
    kinds = [kind for kind in field["anyOf"] if kind != {"type": "null"}]
    rest = {name: value for name, value in field.items() if name not in ("anyOf", "default", "title")}
    return rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
