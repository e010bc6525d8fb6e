from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from service.catalog.prompt_limits import CLIP_PIECES
from tests.factories import make_generation
from worker.child.engine import Engine
from worker.networks.text_encoder import PromptTooLong

WORDS = st.sampled_from(
    ["a", "red", "circle", "don't", "512x512", "it's", "кот", "🐕", "snake_case", "!!", "—", "Ⅷ", "x²"]
)
TEXTS: SearchStrategy[str] = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=15).map(" ".join))


@given(text=TEXTS)
def test_api_never_counts_more_tokens_than_the_tokenizer(loaded_engine: Engine, text: str) -> None:
    """What the API refuses for its length, the worker would have refused too."""
    tokens = loaded_engine.models.video_text_encoder.tokenizer(text)["input_ids"]
    assert len(CLIP_PIECES.findall(text)) + 2 <= len(tokens)


@pytest.mark.parametrize("which", ["prompt", "negative_prompt"])
def test_job_with_a_prompt_that_is_too_long_fails_with_that_reason(engine: Engine, which: str) -> None:
    generation = make_generation(**{which: "a red circle " * 10})
    with pytest.raises(PromptTooLong) as caught:
        engine.generate(generation)
    ended = engine.failed_message(caught.value)
    assert (ended.code, ended.can_retry) == ("prompt_too_long", False)
    assert "the text has 32 tokens, the text encoder takes 16" in ended.message
    assert "circle" not in ended.message
