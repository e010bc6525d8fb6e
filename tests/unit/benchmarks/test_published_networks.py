"""A benchmark's own network on clips of a run, with random weights in the place of the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper import features_command, published_networks
from benchmarks.paper.clips import mp4_bytes
from benchmarks.paper.downloads import Download, downloads
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.facts import Fact
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.protocols import protocol
from benchmarks.paper.published_networks import PublishedNetwork, real_rows

MSR_VTT = protocol("msr-vtt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of downloads; the network is a mean of pixels, because I3D's own tests run it."""
    (tmp_path / "i3d_pretrained_400.pt").write_bytes(b"weights")
    np.save(tmp_path / "msr-vtt.npy", np.arange(12.0).reshape(6, 2))
    monkeypatch.setattr(published_networks, "open_network", lambda *_: lambda clip: clip.mean((0, 1, 2))[:2])
    return tmp_path


def files(sha256: str) -> list[Download]:
    known = Fact[str](value=sha256, status="known", source="x")
    return [file.model_copy(update={"sha256": known}) for file in downloads("msr-vtt") if file.role == "weights"]


def test_weights_that_are_missing_or_others_are_refused(folder: Path) -> None:
    with pytest.raises(BenchmarkError, match="delete it and get it again"):
        _ = PublishedNetwork(MSR_VTT, folder, "cpu").digest
    assert PublishedNetwork(MSR_VTT, folder, "cpu", files(hashlib.sha256(b"weights").hexdigest())).digest
    (folder / "i3d_pretrained_400.pt").unlink()
    with pytest.raises(BenchmarkError, match="`ivmix bench fetch msr-vtt`"):
        PublishedNetwork(MSR_VTT, folder, "cpu")
    with pytest.raises(BenchmarkError, match="no weights of 'i3d-stylegan-v' that ivmix can load"):
        PublishedNetwork(protocol("ucf-101-stylegan-v"), folder, "cpu")


def test_features_are_vectors_and_real_rows_are_all_or_one_for_each_prompt(folder: Path) -> None:
    network = PublishedNetwork(MSR_VTT, folder, "cpu")
    frames = np.full((3, 4, 4, 3), (10, 20, 30), dtype=np.uint8)
    found = network.of_clip(frames, "a prompt")
    assert found.spaces["i3d"].tolist() == [[10, 20]]
    assert dict(found.scores) == {}
    two = [Prompt("a", "a"), Prompt("b", "b")]
    real = network.real(two)
    assert real.reference["i3d"].shape == (6, 1, 2)
    assert real.others is None
    by_prompt = MSR_VTT.model_copy(update={"parts": Fact(value="mean", status="assumed", source="x")})
    real = PublishedNetwork(by_prompt, folder, "cpu").real(two)
    assert real.reference["i3d"].tolist() == [[[0, 1]], [[2, 3]]]


def test_real_features_may_be_a_saved_tensor(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2), tmp_path / "gt.pt")
    assert real_rows(tmp_path, "gt.pt", "chronomagic-150").tolist() == [[1, 1]] * 3
    torch.save({"a": 1}, tmp_path / "gt.pt")
    with pytest.raises(BenchmarkError, match="no tensor"):
        real_rows(tmp_path, "gt.pt", "chronomagic-150")


def test_features_of_real_clips_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def open_network(*_: object) -> object:
        return lambda clip: seen.append(clip.shape) or clip.mean((0, 1, 2))

    monkeypatch.setattr("benchmarks.paper.features.open_network", open_network)
    (tmp_path / "weights").write_bytes(b"w")
    for i in range(2):
        content = mp4_bytes(np.full((9, 32, 32, 3), 100 * i, dtype=np.uint8), 8)
        (tmp_path / f"{i}.mp4").write_bytes(content)
    output = tmp_path / "real.npy"
    arguments = {"network": "i3d-crop", "weights": tmp_path / "weights", "stride": 2, "device": "cpu"}
    for frames, expected in ((4, 2), (4, 2), (5, 4)):
        features_command.features([tmp_path], output, frames=frames, **arguments)
        assert len(seen) == expected
    assert [shape[0] for shape in seen] == [4, 4, 5, 5]
    assert np.load(output)[:, 0].round(-1).tolist() == [0, 100]
    with pytest.raises(BenchmarkError, match="0 videos"):
        features_command.video_files([])
