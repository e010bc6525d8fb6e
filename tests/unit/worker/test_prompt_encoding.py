"""clip_skip as in diffusers; long and weighted prompts as in compel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode
from diffusers import AnimateDiffPipeline, AnimateDiffSDXLPipeline, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sampler import InvalidSetting
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from tests.factories import make_generation
from worker.child.engine import Engine
from worker.networks.prompt_tokens import PromptTooLong, TextOptions
from worker.networks.text_encoder import AnyTextEncoder, Encoded, PairedTextEncoder, TextEncoder

LAYERS, LIMIT = 3, 16
PROMPT, NEGATIVE = "a red circle moving left", "low quality"
# 20 tokens of one word each, so that compel's windows of 14 tokens end between words, as ours do
LONG = "a red circle moving left on a teal background " * 2 + "a blue"
OPTIONS = TextOptions(chunks=3, weighting=True)


def text_encoder(kind: type[Any], width: int, pad: str | None = None) -> TextEncoder:
    folder = ModelRegistry.load().get("demo").path
    assert folder is not None
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=LIMIT)
    tokenizer.pad_token = pad or tokenizer.pad_token
    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=LIMIT,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextEncoder(tokenizer, kind(config).eval())


ONE = text_encoder(CLIPTextModel, 16)
TWO = PairedTextEncoder(ONE, text_encoder(CLIPTextModelWithProjection, 32, pad="!"))


def encoded(encoder: AnyTextEncoder, *texts: str, options: TextOptions = OPTIONS, skip: Sequence[int] = ()) -> Encoded:
    return encoder.encode(encoder.tokenize(texts, options), skip)


@pytest.fixture
def diffusers_can_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers 0.42 finds the final norm where transformers 4 had it."""
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)


def of_diffusers(clip_skip: int | None, *, is_sdxl: bool) -> tuple[Tensor, ...]:
    """(prompt, negative), and of SDXL both pooled."""
    parts: dict[str, Any] = {"vae": None, "unet": None, "motion_adapter": None, "scheduler": DDIMScheduler()}
    parts |= {"text_encoder": ONE.encoder, "tokenizer": ONE.tokenizer}
    if is_sdxl:
        parts |= {"text_encoder_2": TWO.second.encoder, "tokenizer_2": TWO.second.tokenizer}
        pipeline: Any = AnimateDiffSDXLPipeline(**parts)
    else:
        pipeline = AnimateDiffPipeline(**parts)
    settings = {"negative_prompt": NEGATIVE, "clip_skip": clip_skip, "do_classifier_free_guidance": True}
    settings |= {"num_videos_per_prompt" if is_sdxl else "num_images_per_prompt": 1}
    return pipeline.encode_prompt(PROMPT, device="cpu", **settings)


@pytest.mark.usefixtures("diffusers_can_skip")
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
@pytest.mark.parametrize("encoder", [ONE, TWO], ids=["one", "sdxl"])
def test_clip_skip_is_that_of_diffusers(encoder: AnyTextEncoder, skip: int) -> None:
    if skip > encoder.most_clip_skip:
        with pytest.raises(InvalidSetting, match="clip_skip=3 is above 2"):
            encoded(encoder, PROMPT, skip=[skip])
        return
    prompt, negative, *pooled = of_diffusers(skip or None, is_sdxl=encoder is TWO)
    found, without = encoded(encoder, PROMPT, skip=[skip]), encoded(encoder, NEGATIVE)
    assert torch.equal(found.text, prompt)
    assert torch.equal(without.text, negative)
    both = encoded(encoder, PROMPT, NEGATIVE, skip=[skip, 0])  # as the engine encodes them
    assert torch.allclose(both.text, torch.cat((prompt, negative)), atol=1e-6)
    if pooled:
        assert both.pooled is not None
        assert torch.allclose(both.pooled, torch.cat(pooled), atol=1e-6)


def of_compel(part: TextEncoder, kind: ReturnedEmbeddingsType, *texts: str) -> Tensor:
    """(B, tokens, dim) of one encoder."""
    compel = Compel(
        tokenizer=part.tokenizer,
        text_encoder=part.encoder,
        truncate_long_prompts=False,
        split_long_text_mode=SplitLongTextMode.BRUTAL,
        returned_embeddings_type=kind,
    )
    return torch.cat(compel.pad_conditioning_tensors_to_same_length([compel(text) for text in texts]))


@pytest.mark.parametrize("encoder", [ONE, TWO], ids=["one", "sdxl"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(LONG, LONG), ("a (red circle:1.5) moving (left)", "a (red circle)1.5 moving (left)1.1")],
    ids=["long", "weighted"],
)
def test_long_and_weighted_prompts_are_those_of_compel(encoder: AnyTextEncoder, ours: str, theirs: str) -> None:
    kinds = ReturnedEmbeddingsType
    kind = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if encoder is TWO else kinds.LAST_HIDDEN_STATES_NORMALIZED
    text = torch.cat([of_compel(part, kind, theirs, NEGATIVE) for part in encoder.parts.values()], dim=-1)
    found = encoded(encoder, ours, NEGATIVE).text
    assert found.shape == text.shape == (2, LIMIT * (2 if ours == LONG else 1), encoder.dim)
    assert (found - text).abs().max() <= 1e-5


def test_pooled_embeddings_are_those_of_the_first_window_without_weights() -> None:
    first = encoded(TWO, "a red circle moving left on a teal background a red circle moving left", NEGATIVE)
    weighted = encoded(TWO, f"(a red:2) {LONG.removeprefix('a red ')}", NEGATIVE)
    assert weighted.text.shape[1] == 2 * LIMIT
    assert first.pooled is not None
    assert weighted.pooled is not None
    assert torch.allclose(weighted.pooled, first.pooled, atol=1e-6)


@pytest.mark.parametrize("encoder", [ONE, TWO], ids=["one", "sdxl"])
def test_one_window_without_brackets_is_what_it_was(encoder: AnyTextEncoder) -> None:
    plain, opted = encoded(encoder, PROMPT, NEGATIVE, options=TextOptions()), encoded(encoder, PROMPT, NEGATIVE)
    assert torch.equal(plain.text, opted.text)
    assert torch.equal(encoder.token_ids([PROMPT]), encoder.tokenize([PROMPT], OPTIONS).ids)


def words(text: str, options: TextOptions = OPTIONS) -> list[str]:
    """The words of each window."""
    windows = ONE.tokenize([text], options).ids.reshape(-1, LIMIT)
    return [ONE.tokenizer.decode(window, skip_special_tokens=True).strip() for window in windows]


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("a " * 14 + "red", ["a " * 13 + "a", "red"]),
        ("a " * 12 + ", red blue", ["a " * 12 + ",", "red blue"]),  # a phrase of at most 3 of 14 tokens moves on
        ("a " * 8 + ", a a red a a a", ["a " * 8 + ", a a red a a", "a"]),  # a longer one is split
        ("a " * 13 + "movinggg", ["a " * 12 + "a", "movinggg"]),  # four tokens
        ("a red BREAK (blue BREAK a:1.2)", ["a red", "blue", "a"]),
        ("BREAK a red BREAK BREAK", ["a red"]),
        ("a BREAKING red", ["a breaking red"]),
        ("", [""]),
    ],
)
def test_a_window_ends_with_a_word_or_after_a_comma(text: str, windows: list[str]) -> None:
    assert words(text) == [window.strip() for window in windows]


def test_a_word_that_fills_more_than_a_window_is_cut() -> None:
    assert len(words("g" * 20)) == 2


def test_text_that_fills_too_many_windows_is_refused() -> None:
    with pytest.raises(PromptTooLong, match="fills 4 windows of 16 tokens, the model reads 3; shorten it"):
        words("a " * 43)
    with pytest.raises(PromptTooLong, match="has 20 tokens"):
        words("a " * 18, TextOptions(weighting=True))
    with pytest.raises(InvalidSetting, match="is not closed"):
        words("(a")


def test_without_the_options_brackets_and_break_are_text() -> None:
    assert words("(a:1.3) BREAK", TextOptions()) == ["( a : 1 . 3 ) break"]


@given(text=st.lists(st.sampled_from(["a", "red", "(square:1.2)", ",", "BREAK", "movinggg", "[a]"])).map(" ".join))
def test_api_refuses_only_what_the_encoder_refuses(text: str) -> None:
    options = {"prompt": None, "prompt_chunks": OPTIONS.chunks, "prompt_weighting": True}
    entry = ModelRegistry.load().get("demo").model_copy(update=options)
    try:
        entry.check_text("negative_prompt", text)
    except InvalidParameter:
        with pytest.raises(PromptTooLong):
            ONE.tokenize([text], OPTIONS)


def with_options(engine: Engine, **options: Any) -> Engine:
    engine.models = replace(engine.models, entry=engine.models.entry.model_copy(update=options))
    return engine


def test_both_texts_of_a_run_have_as_many_windows(engine: Engine) -> None:
    models = with_options(engine, prompt_chunks=3, prompt_weighting=True).models
    image, video = models.denoisers(LONG, "low quality")
    assert image.cond.shape == image.uncond.shape == video.cond.shape
    assert video.cond.shape[1] == 2 * LIMIT
    assert torch.equal(video.uncond[:, :LIMIT], models.denoisers("a", "low quality")[1].uncond)


def test_job_with_long_weighted_prompt_and_clip_skip_runs(engine: Engine) -> None:
    def frames(**over: Any) -> Tensor:
        settings = {"num_inference_steps": 1, "prompt_weighting": True, "prompt_chunks": 2} | over
        return engine.generate(make_generation(**settings)).frames

    plain = frames(prompt_weighting=False, prompt_chunks=1)
    assert torch.equal(frames(), plain)
    for changes in ({"clip_skip": 1}, {"prompt": f"{LONG}, a square"}, {"prompt": "a (red:2) circle moving left"}):
        assert not torch.equal(frames(**changes), plain), changes
