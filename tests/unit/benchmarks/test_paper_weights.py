"""Files of weights: training checkpoints as they are published, and what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.umt import Umt
from benchmarks.paper.weights import convert, load_strict, load_umt, read_state
from tests.unit.benchmarks.filled_weights import filled
from tests.unit.benchmarks.test_paper_networks import TINY


@pytest.fixture
def easy_dict(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of the configuration in published checkpoints, as pickle sees it: a dict whose keys are attributes."""

    class EasyDict(dict[str, Any]):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            self[name] = value

    EasyDict.__module__, EasyDict.__qualname__ = "utils.easydict", "EasyDict"
    module = types.ModuleType("utils.easydict")
    module.EasyDict = EasyDict  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "utils.easydict", module)
    return EasyDict


@pytest.fixture
def checkpoint(tmp_path: Path, easy_dict: type, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the original's training writes: weights, optimiser, schedule and configuration."""
    config = easy_dict()
    config.model = easy_dict(embed_dim=20)
    weights = filled(Umt(TINY)) | {"text_encoder.embeddings.position_ids": torch.arange(32)[None]}
    moments = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 2e-5}]}
    path = tmp_path / "UMT.pth"
    torch.save({"model": weights, "optimizer": moments, "config": config, "epoch": 3, "global_step": 10}, path)
    for name in ("utils", "utils.easydict"):
        monkeypatch.delitem(sys.modules, name)
    return path


def tiny() -> Umt:
    return Umt(TINY)


def test_a_training_checkpoint_is_read_and_converted(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "umt.safetensors")
    expected = filled(Umt(TINY))
    for path in (checkpoint, tmp_path / "umt.safetensors"):
        found = load_umt(path, tiny).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not list(tmp_path.glob("*.part"))


def test_names_of_pre_training_are_read(tmp_path: Path) -> None:
    state = {name.replace("text_encoder.", "text_encoder.bert."): value for name, value in filled(Umt(TINY)).items()}
    save_file(state | {"text_encoder.cls.predictions.bias": torch.zeros(40)}, tmp_path / "umt.safetensors")
    assert torch.equal(load_umt(tmp_path / "umt.safetensors", tiny).temp, state["temp"])


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run by the file",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Malicious()}, tmp_path / "umt.pth")
    with pytest.raises(BenchmarkError, match=r"umt.pth: not a file of weights, or damaged: .*Unsupported global"):
        read_state(tmp_path / "umt.pth")
    assert "run by the file" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut", b"\x80\x04}q"])
@pytest.mark.parametrize("name", ["umt.pth", "umt.safetensors"])
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchmarkError, match=f"{name}: not a file of weights, or damaged: "):
        read_state(tmp_path / name)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(BenchmarkError, match="holds something else than weights by name"):
        read_state(tmp_path / "list.pth")
    with pytest.raises(BenchmarkError, match="no such file"):
        read_state(tmp_path / "missing.pth")


def test_every_difference_of_names_and_shapes_is_counted() -> None:
    state = filled(Umt(TINY))
    state["unknown"] = state.pop("temp")
    state["itm_head.weight"] = torch.zeros(3, 24)
    expected = (
        r"x.pth: not the weights of this network \(Umt\): 1 missing: temp; 1 unknown: unknown; "
        r"1 of another shape: itm_head.weight \(3, 24\) instead of \(2, 24\)"
    )
    with pytest.raises(BenchmarkError, match=expected):
        load_strict(tiny, state, "x.pth")
