"""The texts of errors: what is wrong can be seen in them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from service.api.errors import error_response
from service.validation_messages import invalid_value


@pytest.mark.parametrize(
    ("sent", "shown"),
    [("circle\u202e", r"circle\u202e"), ("red\u200b", r"red\u200b"), ("\x00", r"\x00"), ("\ud800", r"\ud800")],
    ids=["reading order", "zero width", "NUL", "surrogate"],
)
def test_characters_that_do_not_show_are_escaped(sent: str, shown: str) -> None:
    answer = error_response(400, f"no '{sent}', é, 圆", code="invalid_value", param="prompt")
    assert json.loads(bytes(answer.body))["error"]["message"] == f"no '{shown}', é, 圆"


class _Fields(BaseModel):
    event: Annotated[str, Field(pattern=r"^\d+-\d+$")] = "1-1"
    time: Annotated[float, Field(le=253402300799)] = 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("event", "abc", r"'abc' is not possible, it must be of the form ^\d+-\d+$."),
        ("time", 1e20, "1e+20 is not possible, it must be at most 253402300799."),
    ],
)
def test_an_error_says_what_is_possible(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Fields.model_validate({name: value})
    assert invalid_value(name, caught.value.errors()[0]) == f"Invalid value for '{name}': {message}"
