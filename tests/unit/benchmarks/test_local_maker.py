"""Clips of `ivmix bench` that are sampled together are those of a job each, whatever the family and the sampler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.local_maker import LocalMaker, loaded, sampled_together
from benchmarks.paper.prompts import Prompt
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from tests.tiny_wan import PROMPT, save_wan


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalMaker]:
    save_wan(tmp_path)
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(tmp_path / "models.toml"))
    loaded.cache_clear()
    yield LocalMaker("tiny")
    loaded.cache_clear()


def generations(maker: LocalMaker, sampler: dict[str, Any]) -> list[Generation]:
    texts = enumerate((PROMPT, "a green square"))
    requests = [VideoRequest(prompt=text, seed=seed, sampler=sampler, num_inference_steps=2) for seed, text in texts]
    return [maker.engine.models.entry.resolve(request) for request in requests]


def test_wan_clips_are_the_same_together_and_alone(maker: LocalMaker) -> None:
    both = generations(maker, {"name": "fused", "image_frames": "first"})
    together = sampled_together(maker.engine, both)
    for generation, clip in zip(both, together, strict=True):
        alone = maker.engine.generate(generation).frames.numpy()
        assert abs(clip.astype(int) - alone.astype(int)).max() <= 2  # another batch, another rounding


def test_prompts_that_t5_cannot_take_are_named(maker: LocalMaker) -> None:
    maker.check_prompts([Prompt(id="1", text=PROMPT)])
    with pytest.raises(InvalidParameter, match=r"1 of 2 prompts \(long, "):
        maker.check_prompts([Prompt(id="1", text=PROMPT), Prompt(id="long", text="a " * 600)])
