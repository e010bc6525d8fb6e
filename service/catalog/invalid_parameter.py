"""pydantic's errors as InvalidParameter."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from service.errors import InvalidParameter
from service.jobs.step_cache import CACHES
from service.validation_messages import invalid_value, unknown_parameter


def invalid_parameter(e: ValidationError, *, within: str = "", known: Iterable[str] = ()) -> InvalidParameter:
    """The first error of pydantic as InvalidParameter; the client gets the next one when it tries again.

    Args:
        within: the field that was validated.
        known: names to suggest instead of an unknown one.
    """
    error = e.errors(include_url=False)[0]
    location = (str(part) for part in error["loc"] if part not in CACHES)  # pydantic also names the chosen alternative
    param = ".".join(filter(None, (within, *location))) or None
    reason = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "string_too_long": "string_above_max_length",
    }.get(error["type"], "invalid_value")
    message = {
        "missing_required_parameter": lambda: f"Missing required parameter: '{param}'.",
        "unknown_parameter": lambda: unknown_parameter(param or "", known),
    }.get(reason, lambda: invalid_value(param or "body", error))
    return InvalidParameter(param, message(), reason)
