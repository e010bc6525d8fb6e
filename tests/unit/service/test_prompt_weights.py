"""Weights in prompts: what is read, and what is refused when the request is made."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.model_entry import ModelEntry
from service.catalog.prompt_weights import LEAST, MOST, weighted_spans, without_weights
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.model import Generation
from tests.factories import make_generation, make_request

DEMO = ModelRegistry.load().get("demo")
OPEN = ModelRegistry.load().entry("animatediff")


def with_options(entry: ModelEntry, **options: object) -> ModelEntry:
    return entry.model_copy(update={"prompt_weighting": True, **options})


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a red fox", [("a red fox", 1)]),
        ("a (red:1.3) fox", [("a ", 1), ("red", 1.3), (" fox", 1)]),
        ("a (red : 1.3 ) fox", [("a ", 1), ("red ", 1.3), (" fox", 1)]),
        ("((red)) [fox]", [("red", 1.21), (" ", 1), ("fox", 1 / 1.1)]),
        ("([red]) fox", [("red fox", 1)]),
        ("(a (red:1.5) fox:0.5)", [("a ", 0.5), ("red", 0.75), (" fox", 0.5)]),
        (r"a \(red\) \[x\] \\ fox\n", [(r"a (red) [x] \ fox\n", 1)]),
        (r"(red \(dark\):1.2)", [("red (dark)", 1.2)]),
        ("time: 16:9, (style: anime)", [("time: 16:9, ", 1), ("style: anime", 1.1)]),
        ("(ratio 16:1.5:2)", [("ratio 16:1.5", 2)]),
        ("(red:+.5)", [("red", 0.5)]),
        ("(red:1e0)", [("red", 1)]),
        ("", []),
    ],
)
def test_brackets_weight_words(text: str, spans: list[tuple[str, float]]) -> None:
    found = weighted_spans(text)
    assert [span.text for span in found] == [words for words, _ in spans]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in spans], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a (red fox", "the '(' at character 3 is not closed"),
        ("a red) fox", "the ')' at character 6 closes no '('"),
        ("a red:1.3) fox", "the ')' at character 10 closes no '('"),
        ("(a [red) fox]", "the ')' at character 8 closes no '('"),
        ("[red", "the '[' at character 1 is not closed"),
        ("smile :)", "write \\( and \\[ for brackets that are text"),
        ("a () fox", "the '(' at character 3 encloses no words"),
        ("a ( :1.3) fox", "encloses no words"),
        ("(red:0)", "the weight at character 6 is 0, outside 0.1 to 5"),
        ("(red:-1.2)", "the weight at character 6 is -1.2, outside 0.1 to 5"),
        ("(red:1e9)", "is 1e+09, outside"),
        ("(red:nan)", "is nan, outside"),
        ("(red:-inf)", "is -inf, outside"),
        ("(red:Infinity)", "is inf, outside"),
        ("(red:1,3)", "the weight at character 6 is not a number such as 1.3"),
        ("(red:1.2.3)", "is not a number"),
        ("(at 5:30pm)", "is not a number"),
        ("((red:4):4)", "the weight at character 1 is 16, outside"),
        ("[[red:0.5]]", "looks like words that change during the run"),
        ("[red|blue]", "looks like words that change during the run"),
        ("(" * 40 + "red" + ")" * 40, "more than 16 brackets around one another"),
    ],
)
def test_what_cannot_be_read_is_refused_without_naming_the_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        weighted_spans(text)
    assert "red" not in str(raised.value)


@given(st.text(st.sampled_from("ab ()[]\\:.,1|-")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spans = weighted_spans(text)
    except ValueError:
        return
    assert all(span.text and LEAST <= span.weight <= MOST for span in spans)


@given(st.text())
def test_escaped_text_has_no_weights(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in text)
    assert without_weights(escaped) == text


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
def test_request_with_wrong_brackets_is_refused_by_name(param: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{param}: the '\\(' at character 3 is not closed") as raised:
        with_options(OPEN).resolve(make_request(**{param: "a (fox"}))
    assert raised.value.param == param
    assert OPEN.resolve(make_request(**{param: "a (fox"})).prompt_weighting is False


def test_closed_vocabulary_reads_the_words_in_brackets() -> None:
    weighted = with_options(DEMO)
    assert weighted.resolve(make_request(prompt="a (red:1.3) [circle]")).prompt_weighting
    with pytest.raises(InvalidParameter, match="does not know 'dog'"):
        weighted.resolve(make_request(prompt="a (dog:1.3)"))
    with pytest.raises(InvalidParameter, match="does not know '1', '3'"):  # brackets are text
        DEMO.resolve(make_request(prompt="a (red:1.3)"))
    with pytest.raises(InvalidParameter, match="prompt is empty"):
        weighted.resolve(make_request(prompt=r"\(\)"))


def test_long_prompts_are_refused_beyond_their_windows() -> None:
    entry = with_options(DEMO, prompt_chunks=2)
    for prompt in ("a " * 28, "a BREAK a", "(a " * 1 + "a " * 26 + "a:1.2)"):
        assert entry.resolve(make_request(prompt=prompt)).prompt_chunks == 2
    for prompt in ("a " * 29, "a BREAK a BREAK a"):
        with pytest.raises(InvalidParameter, match="reads 2 windows of 16, and BREAK begins another one"):
            entry.resolve(make_request(prompt=prompt))
    with pytest.raises(InvalidParameter, match="has at least 17 tokens; model 'demo' reads 16"):
        DEMO.resolve(make_request(prompt="a " * 15))
    with pytest.raises(InvalidParameter, match="does not know 'break'"):
        DEMO.resolve(make_request(prompt="a BREAK a"))
    with pytest.raises(InvalidParameter, match="prompt is empty"):
        entry.resolve(make_request(prompt=" BREAK "))


def test_clip_skip_is_refused_beyond_the_layers_of_the_encoder() -> None:
    assert DEMO.resolve(make_request(clip_skip=2)).clip_skip == 2
    with pytest.raises(InvalidParameter, match=r"clip_skip=3 is above 2, .* call Clip skip 2") as raised:
        DEMO.resolve(make_request(clip_skip=3))
    assert raised.value.param == "clip_skip"
    assert OPEN.resolve(make_request(clip_skip=50)).clip_skip == 50  # not fetched: its worker knows its layers


def test_clip_skip_of_the_entry_is_a_default_that_official_does_not_have() -> None:
    entry = DEMO.model_copy(update={"clip_skip": 1})
    assert entry.resolve(make_request()).clip_skip == 1
    assert entry.resolve(make_request(clip_skip=0)).clip_skip == 0
    assert entry.resolve(make_request(sampler={"name": "official"})).clip_skip == 0
    assert entry.resolve(make_request(sampler={"name": "official"}, clip_skip=1)).clip_skip == 1


def test_records_without_the_new_fields_are_what_they_were() -> None:
    stored = make_generation().model_dump_json()
    assert not {"clip_skip", "prompt_chunks", "prompt_weighting"} & make_generation().model_dump().keys()
    assert Generation.model_validate_json(stored) == make_generation(clip_skip=0, prompt_chunks=1)
    changed = make_generation(clip_skip=1, prompt_chunks=2, prompt_weighting=True)
    assert Generation.model_validate_json(changed.model_dump_json()) == changed
