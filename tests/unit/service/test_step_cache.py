"""Requests with a step cache, and entries with 8-bit weights: what is accepted, shown and refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.catalog.footprint import default_need
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.request import VideoRequest

KNOWN = ModelRegistry.load().known
DEMO, WAN = KNOWN["demo"], next(entry for entry in KNOWN.values() if entry.family == "wan")
PROMPT = "a red circle moving left on a teal background"


def resolved(entry: ModelEntry, **fields: Any) -> Generation:
    return entry.resolve(VideoRequest.model_validate({"prompt": PROMPT, **fields}))


def changed(entry: ModelEntry, **fields: Any) -> ModelEntry:
    return ModelEntry.model_validate({**dict(entry), **fields})


def test_nothing_is_approximate_unless_a_request_asks_for_it() -> None:
    for entry in (DEMO, WAN):
        plain = resolved(entry)
        assert (plain.cache, plain.approximations) == (None, [])
        assert "cache" not in plain.model_dump_json(), "records and fingerprints of other jobs stay as they are"
        assert "quantise" not in plain.model_dump_json()


@pytest.mark.parametrize("given", ["deep-cache", {"name": "deep-cache"}, '{"name": "deep-cache", "steps": 1}'], ids=str)
def test_a_name_json_text_and_an_object_say_the_same(given: Any) -> None:
    found = resolved(DEMO, cache=given)
    assert found.cache is not None
    assert found.cache.model_dump() == {"name": "deep-cache", "steps": 1, "levels": 1}
    assert found.approximations == ["deep-cache"]
    assert Generation.model_validate_json(found.model_dump_json()) == found


def test_each_family_has_its_own() -> None:
    assert DEMO.possible_caches == ("deep-cache",)
    assert WAN.possible_caches == ("first-block", "taylorseer")
    assert resolved(WAN, cache={"name": "first-block", "threshold": 0.1}).approximations == ["first-block"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"cache": "first-block"}, "cache.name", "'demo' has no cache 'first-block'; it has deep-cache."),
        ({"cache": "deep-cache", "sampler": {"name": "official"}}, "cache.name", "runs the released code"),
        *(
            ({"cache": "deep-cache", "sampler": {"name": name}}, "cache.steps", "once in a step, .* use 2 or more")
            for name in ("ddim", "fused", "evs", "freeinit")
        ),
        ({"cache": {"name": "deep-cache", "levels": 3}}, "cache.levels", "has 3 levels, .*; use 2 or less"),
    ],
    ids=str,
)
def test_what_the_model_or_the_sampler_cannot_use_is_refused(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said) as raised:
        resolved(DEMO, **fields)
    assert raised.value.param == param


@pytest.mark.parametrize("name", ["iv-mixed", "zigzag", "ddim", "fused", "evs", "freeinit"])
def test_every_other_sampler_takes_deep_cache(name: str) -> None:
    assert resolved(DEMO, cache={"name": "deep-cache", "steps": 2}, sampler={"name": name}).cache is not None


def test_extrapolating_steps_does_not_work_with_zigzags() -> None:
    with pytest.raises(InvalidParameter, match="'iv-mixed' also goes back; use first-block"):
        resolved(WAN, cache="taylorseer", sampler={"name": "iv-mixed"})
    assert resolved(WAN, cache="first-block", sampler={"name": "iv-mixed"}).cache is not None


def test_an_operator_may_limit_the_caches() -> None:
    none = changed(DEMO, caches=[])
    assert none.possible_caches == ()
    with pytest.raises(InvalidParameter, match="it has none; leave out"):
        resolved(none, cache="deep-cache")
    one = changed(WAN, caches=["first-block"])
    with pytest.raises(InvalidParameter, match="it has first-block"):
        resolved(one, cache="taylorseer")


def test_blocks_that_are_copied_in_a_fixed_order_have_no_caches() -> None:
    offloaded = changed(WAN, memory={"group_offload": True})
    assert offloaded.possible_caches == ()
    for field in ({"caches": ["first-block"]}, {"quantise": "float8"}):
        with pytest.raises(ValidationError, match=r"does not work with memory\.group_offload"):
            changed(offloaded, **field)


@pytest.mark.parametrize(
    ("entry", "fields", "said"),
    [
        (DEMO, {"caches": ["taylorseer"]}, "caches has taylorseer; family animatediff has deep-cache"),
        (DEMO, {"quantise": "float8"}, "families wan and cogvideox; most of a UNet is convolutions"),
        (WAN, {"quantise": "float8", "dtype": "float16"}, "rounds weights in bfloat16, and dtype is float16"),
    ],
    ids=["cache of another family", "UNet", "dtype"],
)
def test_entries_that_cannot_be_are_refused(entry: ModelEntry, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        changed(entry, **fields)


def test_a_model_with_eight_bit_weights_marks_every_generation_and_needs_less_memory() -> None:
    small = changed(WAN, quantise="float8-weights")
    assert resolved(small).approximations == ["float8-weights"]
    assert resolved(small, cache="first-block").approximations == ["first-block", "float8-weights"]
    before, after = default_need(WAN), default_need(small)
    assert before is not None
    assert after is not None
    assert after < before


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_resumes_only_where_the_cache_is_empty(steps: int) -> None:
    cached = resolved(DEMO, cache={"name": "deep-cache", "steps": steps}, num_inference_steps=10)
    assert [done for done in range(11) if cached.can_resume_after(done)] == [*range(0, 10, steps), 10][
        : 11 // steps + 2
    ]
    whole = resolved(WAN, cache="first-block", num_inference_steps=10)
    assert [done for done in range(1, 11) if whole.can_resume_after(done)] == [10]
