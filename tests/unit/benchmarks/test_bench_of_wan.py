"""`ivmix bench` on a flow model with a causal autoencoder: a tiny random Wan goes through the whole command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.paper.__main__ import app
from benchmarks.paper.local_maker import LocalMaker, loaded, sampled_together
from benchmarks.paper.prompts import Prompt
from service.catalog.model_entry import ModelEntry
from service.errors import InvalidParameter, ServiceError
from tests.tiny_wan import FRAMES, generation, save_wan, wan_entry
from worker.child.engine import Engine

ARMS = ("--arms", "ddim,iv-mixed,fused", "--ablation", "guidance")
FIRST = 'first-frame={"sampler": {"name": "fused", "image_frames": "first"}}'


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    made = wan_entry(folder)
    file = folder / "models.toml"
    file.write_text(file.read_text().replace("32x32", "48x48"))
    return made


@pytest.fixture(autouse=True)
def registered(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    assert entry.path is not None
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(entry.path / "models.toml"))
    monkeypatch.setenv("IVMIX_DATA_DIR", str(tmp_path / "data"))
    loaded.cache_clear()
    yield
    loaded.cache_clear()


def bench(*arguments: str) -> str:
    """What the command printed. Raises what it raised."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def run(out: Path, *options: str, steps: int = 2) -> list[dict[str, Any]]:
    """The manifests of the clips."""
    fields = {"size": "48x48", "num_frames": FRAMES, "num_inference_steps": steps}
    settings = (part for name, value in fields.items() for part in ("--set", f"{name}={value}"))
    bench("demo", "--model", "tiny", "--clips", "1", "--out", str(out), *settings, *options)
    return [json.loads(file.read_text()) for file in sorted((out / "clips").glob("*/[!.]*.json"))]


@pytest.mark.slow
def test_ablations_and_the_table_run_to_their_end(tmp_path: Path) -> None:
    made = run(tmp_path / "run", "--limit", "2", "--batch", "2", *ARMS, "--arm", FIRST)
    arms = {file.parent.name for file in (tmp_path / "run" / "clips").glob("*/*.mp4")}
    assert len(made) == 2 * len(arms)
    assert arms >= {"ddim", "iv-mixed", "fused", "ddim-matched", "image-guidance-x2", "first-frame"}
    assert "first-frame" in bench("table", str(tmp_path / "run"), "--clips", "1", "--permutations", "19")


def test_what_the_model_cannot_run_is_refused_before_any_clip_is_made(tmp_path: Path) -> None:
    assert len(run(tmp_path / "run", "--limit", "1", "--arms", "iv-mixed", "--no-features", steps=1)) == 2
    for options, message in (
        (("--ablation", "combinations"), "IV-IV.* is not offered"),
        (("--arms", "freeinit,iv-mixed"), "use ddim"),
    ):
        with pytest.raises(ServiceError, match=message):
            run(tmp_path / "other", "--limit", "1", "--no-features", *options)
    assert not (tmp_path / "other" / "clips").exists()


def test_prompts_are_measured_with_the_models_own_tokenizer() -> None:
    long = Prompt("0", " ".join(["a"] * 512))
    with pytest.raises(InvalidParameter, match=r"1 of 1 prompts .* are longer"):
        LocalMaker("tiny").check_prompts([long])
    cut = LocalMaker("tiny", cut_prompts=True)
    cut.check_prompts([long])
    assert len(cut._cut(long.text).split()) == 511


def test_clips_sampled_together_are_the_same_with_the_settings_of_denoisers(entry: ModelEntry) -> None:
    """The batch forgot image_frames, and the released loops' own texts and sizes."""
    engine = Engine(entry, torch.device("cpu"))
    first, every = (
        [
            generation(entry, seed=seed, prompt=prompt, sampler={"name": "fused", "image_frames": frames})
            for seed, prompt in enumerate(("a red circle", "a green square"))
        ]
        for frames in ("first", "all")
    )
    together = sampled_together(engine, first)
    for clip, alone, other in zip(together, first, sampled_together(engine, every), strict=True):
        found = engine.generate(alone).frames.numpy()
        assert np.abs(clip.astype(int) - found).max() <= 2
        assert np.abs(clip.astype(int) - other).max() > 2
