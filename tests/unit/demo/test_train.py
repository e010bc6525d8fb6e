"""The training recipe of the demo models: interrupted stages resume exactly, and it produces the committed files."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import fit, latents, networks, train
from demo.fit import Group, Recipe

COMMITTED = Path(inspect.getfile(train)).parent / "weights"
ALONE = Group(rank=0, size=1, port=0)


class Stopped(Exception):
    pass


def fitted(work: Path, *, stop_at: int | None = None) -> dict[str, Tensor]:
    """A small network after eight steps on noise."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)

    def loss_of(step: int, batch: int) -> Tensor:
        if step == stop_at:
            raise Stopped
        return (model(torch.randn(batch, 3)) - 1).square().mean()

    fit.fit("small", Recipe(8, 4, 1e-2), model, [(1.0, model.parameters())], loss_of, group=ALONE, work=work)
    return model.state_dict()


def test_stage_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "CHECKPOINT_EVERY", 3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = fitted(whole)
    with pytest.raises(Stopped):
        fitted(parts, stop_at=5)
    torch.testing.assert_close(fitted(parts), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_recipe_makes_the_files_that_are_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages from nothing, two steps each."""
    monkeypatch.setattr(train, "VAE_CLIPS", 12)
    monkeypatch.setattr(latents, "CLIPS", 100)
    monkeypatch.setattr(latents, "COLORS_CLIPS", 20)
    monkeypatch.setattr(train, "VIVID_CLIPS", 20)
    monkeypatch.setattr(train, "HELD_OUT", 8)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work, into = tmp_path / "work", tmp_path / "weights"
    work.mkdir()
    recipe = Recipe(steps=2, batch=4, rate=1e-3)
    train.train_vae("vae", work, recipe, ALONE)
    latents.make_latents("latents", work, ALONE)
    latents.make_latents("colors", work, ALONE)
    train.train_frames("image", work, recipe, ALONE)
    train.train_frames("image_colors", work, recipe, ALONE)
    train.train_frames("footage", work, recipe, ALONE)
    train.train_motion("motion", work, recipe, ALONE)
    train.train_video("vivid", work, recipe, ALONE)
    train.train_video("start", work, recipe, ALONE)
    train.export(work, into)
    expected = files(COMMITTED) - {Path("README.md"), Path("judges.safetensors")}
    assert files(into) == expected
    for file in expected:
        if file.suffix == ".safetensors":
            assert tensors(into / file) == tensors(COMMITTED / file), file
        else:
            assert (into / file).read_bytes() == (COMMITTED / file).read_bytes(), file
    frozen = Path("text_encoder/model.safetensors")
    assert_equal_up_to_rounding(load_file(into / frozen), load_file(COMMITTED / frozen))


def test_words_are_numbered_the_same_every_time(tmp_path: Path) -> None:
    """Every stage makes the tokenizer anew, and the text encoder's rows go by its numbers."""
    committed = (COMMITTED / "tokenizer" / "tokenizer.json").read_bytes()
    for _ in range(30):
        networks.tokenizer().save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").read_bytes() == committed


def assert_equal_up_to_rounding(made: dict[str, Tensor], committed: dict[str, Tensor]) -> None:
    """Everything is equal bit by bit, except where LAPACK computed it.

    The word rows are the Q of a QR decomposition, whose last float32 bits depend on the processor. Rounded to float16
    they may differ by one unit in the last place, and near zero by the float32 error itself.
    """
    assert made.keys() == committed.keys()
    for name, weights in made.items():
        is_computed = name == "embeddings.token_embedding.weight"
        rtol, atol = (torch.finfo(torch.float16).eps, 1e-6) if is_computed else (0, 0)
        torch.testing.assert_close(weights, committed[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def files(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}


def tensors(file: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(file, "pt") as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118  not a dict
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
