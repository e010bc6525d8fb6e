"""Turns pydantic's errors into sentences for clients: which parameter, which value, what is possible."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_SHOWN = 40  # longer texts may be prompts

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "a text",
    "bool": "true or false",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "missing": "given",
}
_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda ctx: f"greater than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"at least {_number(ctx['ge'])}",
    "less_than": lambda ctx: f"less than {ctx['lt']:g}",
    "less_than_equal": lambda ctx: f"at most {_number(ctx['le'])}",
    "string_too_short": lambda ctx: _amount("at least", ctx["min_length"], "character"),
    "string_too_long": lambda ctx: _amount("at most", ctx["max_length"], "character"),
    "too_short": lambda ctx: _amount("at least", ctx["min_length"], "entry"),
    "too_long": lambda ctx: _amount("at most", ctx["max_length"], "entry"),
    "string_pattern_mismatch": lambda ctx: f"of the form {ctx['pattern']}",
    "literal_error": lambda ctx: f"one of {ctx['expected']}",
    "enum": lambda ctx: f"one of {ctx['expected']}",
    "union_tag_invalid": lambda ctx: f"one of {ctx['expected_tags']}",
    "union_tag_not_found": lambda ctx: f"an object with {ctx['discriminator']}",
}


def invalid_value(param: str, error: Mapping[str, Any]) -> str:
    """A sentence about one entry of `ValidationError.errors(include_input=True)`."""
    kind = str(error["type"])
    if kind == "value_error":
        return f"Invalid value for '{param}': {_our_message(error).rstrip('.')}."
    return (
        f"Invalid value for '{param}': {_shown(error.get('input'), kind)}{_demand(error) or 'must be of another form'}."
    )


def invalid_setting(variable: str, error: Mapping[str, Any]) -> str:
    """The same of an environment variable. Only numbers are shown: another value may be a secret in the wrong place."""
    kind, value = str(error["type"]), error.get("input")
    if not variable or kind == "value_error" or not (demand := _demand(error)):
        return ": ".join(filter(None, (variable, _our_message(error))))
    is_number = kind.startswith(("greater_than", "less_than"))
    return f"{variable}{f'={value}' if is_number else ''} {demand}"


def _our_message(error: Mapping[str, Any]) -> str:
    """Of a validator of ours."""
    return str(error["msg"]).removeprefix("Value error, ")


def _demand(error: Mapping[str, Any]) -> str | None:
    kind = str(error["type"])
    bound = _BOUNDS.get(kind)
    must = "have" if kind in ("string_too_short", "string_too_long", "too_short", "too_long") else "be"
    expected = bound(error["ctx"]) if bound else _KINDS.get(kind.partition("_")[0])
    return expected and f"must {must} {expected}"


def unknown_parameter(name: str, known: Iterable[str], *, kind: str = "parameter") -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown {kind}: '{name[:80]}'.{hint}"


def _shown(value: object, kind: str) -> str:
    """The value, if it is short, and its length where that is what is wrong."""
    if isinstance(value, str) and kind == "string_too_long":
        return f"it has {len(value)} characters, but "
    if value == "":
        return "it is empty, but "
    if isinstance(value, str | int | float) and not kind.startswith("string_too") and len(str(value)) <= MAX_SHOWN:
        return f"{value!r} is not possible, it " if isinstance(value, str) else f"{_number(value)} is not possible, it "
    return "it "


def _number(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool | int)
        else f"{value:.15g}"  # of seconds since 1970 every digit counts
        if isinstance(value, float)
        else str(value)
    )


def _amount(bound: str, number: int, unit: str) -> str:
    plural = unit if number == 1 else unit.replace("y", "ies") if unit.endswith("y") else f"{unit}s"
    return f"{bound} {number} {plural}"
