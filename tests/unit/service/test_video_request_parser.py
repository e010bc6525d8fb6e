"""Request parsing. The encodings as such are tested in integration/test_create_video.py."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from service.api.video_request_parser import NO_OPS, parse, parse_brackets, read_json
from service.errors import InvalidParameter
from tests.factories import PROMPT, make_generation


def refused(body: dict[str, Any]) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as raised:
        parse({"prompt": PROMPT} | body)
    return raised.value


def test_brackets_become_objects_and_lists() -> None:
    form = [("a", "1"), ("b[c]", "2"), ("b[d][e]", "3"), ("f[]", "4"), ("f[]", "5"), ("g[h][]", "6")]
    assert parse_brackets(form) == {"a": "1", "b": {"c": "2", "d": {"e": "3"}}, "f": ["4", "5"], "g": {"h": ["6"]}}


@pytest.mark.parametrize(
    "form",
    [
        [("a", "1"), ("a[b]", "2")],
        [("a[]", "1"), ("a[b]", "2")],
        [("a[b]", "1"), ("a[]", "2")],
        [("a", "1"), ("a[]", "2")],
        [("a", "1"), ("a", "2")],
        [("a" + "[a]" * 5000, "1")],
    ],
    ids=["value and object", "list and object", "object and list", "value and list", "twice", "deep"],
)
def test_a_form_that_contradicts_itself_is_refused(form: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidParameter):
        parse_brackets(form)


@given(st.lists(st.tuples(st.text("ab[]", max_size=8), st.text(max_size=3)), max_size=6))
def test_any_form_is_read_or_refused(form: list[tuple[str, str]]) -> None:
    with contextlib.suppress(InvalidParameter):
        assert isinstance(parse_brackets(form), dict)


@pytest.mark.parametrize(
    "sampler",
    [{"name": "ddim", "rho": 3}, '{"name": "ddim", "rho": 3}', "{'name': 'ddim', 'rho': 3}"],
    ids=["object", "JSON text", "Python text"],
)
def test_objects_can_be_sent_in_three_ways(sampler: object) -> None:
    assert parse({"prompt": PROMPT, "sampler": sampler}).sampler == {"name": "ddim", "rho": 3}


def test_a_sampler_can_be_its_name() -> None:
    assert parse({"prompt": PROMPT, "sampler": "ddim"}).sampler == {"name": "ddim"}


@pytest.mark.parametrize("outer", ["extra_body", "extra_json", "extra_params"])
@pytest.mark.parametrize("inner", [{"seed": 5}, '{"seed": 5}'], ids=["object", "text"])
def test_nested_extras_count_as_if_they_were_outside(outer: str, inner: object) -> None:
    assert parse({"prompt": PROMPT, outer: inner}).seed == 5


def test_the_same_field_outside_and_inside_must_agree() -> None:
    assert parse({"prompt": PROMPT, "seed": 5, "extra_body": {"seed": 5}}).seed == 5
    assert refused({"seed": 5, "extra_body": {"seed": 6}}).param == "seed"


@pytest.mark.parametrize("field", NO_OPS)
def test_a_known_field_that_asks_for_nothing_is_accepted(field: str) -> None:
    for nothing in NO_OPS[field]:
        assert parse({"prompt": PROMPT, field: nothing}).prompt == PROMPT


@pytest.mark.parametrize("field", NO_OPS)
def test_a_known_field_that_asks_for_something_is_refused_by_name(field: str) -> None:
    error = refused({field: {"something": 2}})
    assert (error.param, error.reason) == (field, "unsupported_parameter")
    assert re.search(
        rf"'{field}' (as (1|false|null) only; leave it out|.* send a picture or clip as 'input_reference')",
        error.message,
    )


@pytest.mark.parametrize("field", ["output_path", "model_path", "promt", "webhook"])
def test_an_unknown_field_is_refused_by_name(field: str) -> None:
    error = refused({field: "x"})
    assert (error.param, error.reason) == (field, "unknown_parameter")


def test_null_means_left_out() -> None:
    request = parse({"prompt": PROMPT, "seed": None, "metadata": None, "size": None, "sampler": None, "user": None})
    assert request == parse({"prompt": PROMPT})


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": 5}, "prompt", "invalid_value"),
        ({"prompt": "a" * 32_001}, "prompt", "string_above_max_length"),
        ({"seed": -2}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": "many"}, "seed", "invalid_value"),
        ({"size": 384}, "size", "invalid_value"),
        ({"seconds": float("inf")}, "seconds", "invalid_value"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "invalid_value"),
        ({"num_frames": 8.5}, "num_frames", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": "x"}, "metadata", "invalid_value"),
        ({"extra_body": [1]}, "extra_body", "invalid_value"),
        ({"sampler": [1]}, "sampler", "invalid_value"),
        ({"seed": True}, "seed", "invalid_value"),
        ({"sampler": {"interval": [0, False]}}, "sampler.interval.1", "invalid_value"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(body: dict[str, Any], param: str, reason: str) -> None:
    error = refused(body)
    assert (error.param, error.reason) == (param, reason)


@pytest.mark.parametrize("seconds", ["1", 1, 1.0])
def test_seconds_may_be_text_or_number(seconds: object) -> None:
    assert parse({"prompt": PROMPT, "seconds": seconds}).seconds == 1


def test_a_remix_keeps_clip_skip_also_where_it_is_none() -> None:
    """Left out, the model's default would apply."""
    source = make_generation(clip_skip=2)
    assert parse({"prompt": "x"}, source).clip_skip == 2
    assert parse({"prompt": "x"}, make_generation()).clip_skip == 0
    assert parse({"prompt": "x", "clip_skip": 1}, source).clip_skip == 1
    assert parse({"prompt": "x", "sampler": {"name": "official"}}, source).clip_skip is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is empty"),
        (b'{"prompt": "x",}', "expecting property name enclosed in double quotes, at line 1, column 16"),
        (b'{"seed": 1, "seed": 2}', "'seed' is given twice with different values"),
        (b'{"sampler": {"name": "ddim", "name": "evs"}}', "'name' is given twice with different values"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "it has a number of 5000 digits"),
        (b'{"prompt": "\xe9"}', "it is not in UTF-8 at byte 12"),
        (b'{"metadata": {"a": "\\ud83d"}}', "it has a lone surrogate"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unreadable_body_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(HTTPException, match=re.escape(f"The body is not valid JSON: {reason}")):
        read_json(body)


def test_a_name_twice_with_the_same_value_is_no_contradiction() -> None:
    assert read_json(b'{"seed": 1, "seed": 1}') == {"seed": 1}


def test_an_escaped_character_outside_the_first_plane_is_a_text() -> None:
    assert read_json(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "\U0001f600"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": '{"a": "1", "a": "2"}'}, "metadata"),
        ({"cache": '{"name": "deep-cache", "steps": 2, "steps": 3}'}, "cache"),
        ({"loras": '[{"name": "a", "name": "b"}]'}, "loras"),
        ({"callback_url": "https://example.com", "callback_events": "[" * 100_000}, "callback_events.0"),
    ],
    ids=["metadata", "cache", "loras", "callback_events"],
)
def test_json_text_in_a_field_is_as_strict_as_a_body(body: dict[str, Any], param: str) -> None:
    assert refused(body).param == param
