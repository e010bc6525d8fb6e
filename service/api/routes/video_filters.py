"""Query parameters of the list of videos."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from service.api.auth import Reader, ServicesDep
from service.errors import InvalidParameter
from service.ids import ID_PATTERN
from service.jobs.job_list import JobFilter
from service.jobs.request import MAX_METADATA_NAME, MAX_METADATA_PAIRS
from service.wire.video import STATUS, Status
from service.wiring import Services

METADATA = re.compile(rf"metadata\[(.{{1,{MAX_METADATA_NAME}}})\]", re.DOTALL)
LAST_SECOND = 253_402_300_799  # of the year 9999

VIDEO_ID = re.compile(f"video_{ID_PATTERN}")

METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "Only videos with all of these pairs: metadata[project]=shapes",
    "style": "deepObject",
    "explode": True,
    "schema": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "maxProperties": MAX_METADATA_PAIRS,
        "propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_NAME},
    },
    "example": {},
}

AfterParameter = Annotated[
    str | SkipJsonSchema[None],
    Query(description="The last_id of the previous page; that video may be deleted by now"),
]


def _split(values: list[str]) -> list[str]:
    return [part for value in values for part in value.split(",")]


StatusParameter = Annotated[
    tuple[Status, ...],
    BeforeValidator(_split),
    Query(description="Only videos with one of these; repeat the parameter, or separate by commas"),
]
TimeParameter = Annotated[float, Field(ge=0, le=LAST_SECOND)] | SkipJsonSchema[None]


async def metadata_filter(request: Request) -> dict[str, str]:
    """Parses `metadata[project]=shapes`, which FastAPI cannot."""
    pairs: dict[str, str] = {}
    for name, value in request.query_params.items():
        if not name.startswith("metadata"):
            continue
        match = METADATA.fullmatch(name)
        if match is None:
            raise InvalidParameter(
                name[:80],
                f"'{name[:80]}' must be metadata[NAME]=VALUE, with a NAME of 1 to {MAX_METADATA_NAME} characters.",
            )
        pairs[match[1]] = value
    if len(pairs) > MAX_METADATA_PAIRS:
        raise InvalidParameter("metadata", f"{len(pairs)} pairs of metadata; a video has at most {MAX_METADATA_PAIRS}.")
    return pairs


def job_filter(
    reader: Reader,
    services: ServicesDep,
    metadata: Annotated[dict[str, str], Depends(metadata_filter)],
    model: Annotated[str | SkipJsonSchema[None], Query(description="Only videos of this model")] = None,
    status: StatusParameter = (),
    created_after: Annotated[
        TimeParameter, Query(description="Unix seconds; only videos created at this time or later")
    ] = None,
    created_before: Annotated[TimeParameter, Query(description="Unix seconds; only videos created earlier")] = None,
) -> JobFilter:
    """A FastAPI dependency: which videos the client wants. Raises InvalidParameter for an unknown model."""
    if model is not None:
        model = services.models.real_name(model)
        _check_model(services, model)
    return JobFilter(
        owner=reader.visible_owner,
        model=model,
        states=frozenset(state for state, shown in STATUS.items() if shown in status),
        metadata=metadata,
        created_after=created_after,
        created_before=created_before,
    )


Filter = Annotated[JobFilter, Depends(job_filter)]


def _check_model(services: Services, model: str) -> None:
    offered = services.models.ids()
    if model not in offered and not services.store.lists.is_model_used(model):
        raise InvalidParameter("model", f"Unknown model '{model}'; this server offers {', '.join(offered)}.")


def check_cursor(services: Services, after: str, owner: str | None) -> None:
    """Raises InvalidParameter unless `after` is the id of a video of this owner, or of a deleted one."""
    if not VIDEO_ID.fullmatch(after) or not services.store.lists.is_cursor(after, owner):
        raise InvalidParameter("after", f"No video has the id '{after[:80]}'; send the last_id of the previous page.")
