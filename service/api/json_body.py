"""A FastAPI dependency that reads a small JSON body after the key was checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ValidationError

from service.api.auth import get_webhook_owner
from service.api.body_reader import media_type, read_bytes
from service.api.video_request_parser import is_json, read_json
from service.catalog.invalid_parameter import invalid_parameter

MAX_BODY_BYTES = 64 * 1024
M = TypeVar("M", bound=BaseModel)


def read_json_body(
    model: type[M], caller: Callable[..., Awaitable[object]] = get_webhook_owner
) -> Callable[[Request, Any], Awaitable[M]]:
    """A dependency that validates a JSON body; an empty body is the same as {}.

    Args:
        caller: dependency that checks the key, before the body is read.
    """

    async def read(request: Request, _caller: object = Depends(caller)) -> M:  # a closure has no name for Annotated
        raw = await read_bytes(request, MAX_BODY_BYTES)
        if raw and not is_json(kind := media_type(request)):
            raise HTTPException(415, f"Send the body as application/json, not as '{kind[:80]}'.")
        try:
            return model.model_validate(read_json(raw) if raw else {})
        except ValidationError as e:
            raise invalid_parameter(e, known=model.model_fields) from e

    return read
