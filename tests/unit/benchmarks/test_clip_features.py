"""From a clip to a feature vector or a score, by the name of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.paper import features
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.features import Tokens, UmtScorer, cleaned, open_network
from benchmarks.paper.i3d import I3d
from benchmarks.paper.preprocessing import i3d_squash, umt
from benchmarks.paper.protocols import protocol
from benchmarks.paper.published_networks import PublishedNetwork
from benchmarks.paper.umt import Umt
from benchmarks.paper.weights import load_umt
from tests.unit.benchmarks.filled_weights import filled, frames
from tests.unit.benchmarks.test_paper_networks import TINY

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "flower", "##s", "person", "a"]


@pytest.fixture
def clip() -> np.ndarray:
    return frames((9, 48, 64, 3), 5).numpy()


@pytest.fixture
def tiny_umt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of tiny weights, and networks of that size for `open_network`."""
    path = tmp_path / "umt.safetensors"
    save_file(filled(Umt(TINY)), path)
    monkeypatch.setattr(features, "load_umt", lambda path: load_umt(path, lambda: Umt(TINY)))
    monkeypatch.setattr(features.preprocessing, "umt", lambda clip: umt(clip, frames=4, side=32))
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(TOKENS) + "\n")
    return path


def test_umt_features_are_of_the_prepared_frames(tiny_umt: Path, clip: np.ndarray) -> None:
    found = open_network("umt", tiny_umt)(clip)
    with torch.no_grad():
        expected = load_umt(tiny_umt, lambda: Umt(TINY)).features(umt(clip, frames=4, side=32)[None])[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    rounded = open_network("umt", tiny_umt, dtype=torch.bfloat16)(clip)
    assert 1e-4 < np.abs(rounded - found).max() / np.abs(found).max() < 0.1


@pytest.mark.slow  # four seconds; test_paper_networks.py runs the network, test_preprocessing.py the preparation
def test_i3d_features_are_logits_of_the_prepared_frames(tmp_path: Path, clip: np.ndarray) -> None:
    network = I3d()
    torch.save(filled(network), tmp_path / "i3d.pt")
    network.load_state_dict(filled(network))
    found = open_network("i3d-squash", tmp_path / "i3d.pt")(clip)
    with torch.no_grad():
        expected = network.eval()(i3d_squash(clip)[None])[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_a_score_depends_on_clip_and_text(tiny_umt: Path, vocabulary: Path, clip: np.ndarray) -> None:
    scorer = UmtScorer(tiny_umt, vocabulary)
    scores = [scorer(clip, "flowers"), scorer(clip, "person"), scorer(255 - clip, "flowers")]
    assert len(set(scores)) == 3
    features, score = scorer.both(clip, "FLOWERS!")
    assert score == scores[0]
    np.testing.assert_array_equal(features, open_network("umt", tiny_umt)(clip))


def test_a_table_takes_features_and_score_of_a_clip(tiny_umt: Path, vocabulary: Path, clip: np.ndarray) -> None:
    folder = tiny_umt.parent
    torch.save(load_file(tiny_umt), folder / "UMT-msrvtt-7k.pth")
    (folder / "bert-large-uncased").mkdir()
    vocabulary.rename(folder / "bert-large-uncased" / "vocab.txt")
    found = PublishedNetwork(protocol("chronomagic-150"), folder, "cpu").of_clip(clip, "flowers")
    features, score = UmtScorer(tiny_umt, folder / "bert-large-uncased" / "vocab.txt").both(clip, "flowers")
    np.testing.assert_array_equal(found.spaces["umt"], features[None])
    assert found.scores == {"umtscore": score}


def test_texts_are_cleaned_and_cut_as_upstream(vocabulary: Path) -> None:
    assert (
        cleaned("A  time-lapse, of (two) Flowers:\n 'red'/blue; <person>\n")
        == "a time lapse of two flowers red blue person"
    )
    ids, is_token = Tokens(vocabulary)("Flowers zzz a")
    expected = ["[CLS]", "flower", "##s", "[UNK]", "a", "[SEP]", *["[PAD]"] * 26]
    assert [TOKENS[number] for number in ids[0]] == expected
    assert is_token.tolist() == [[True] * 6 + [False] * 26]
    long, is_token = Tokens(vocabulary)("person " * 50)
    assert (long.shape, TOKENS[long[0, -1]], is_token.all().item()) == ((1, 32), "[SEP]", True)


def test_a_vocabulary_must_be_berts(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"needs vocab.txt of bert-large-uncased"):
        Tokens(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("a\nb\n[CLS]\n")
    with pytest.raises(BenchmarkError, match=r"no vocabulary of BERT, it lacks \[MASK\], \[PAD\], \[SEP\], \[UNK\]"):
        Tokens(tmp_path / "vocab.txt")


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no network 'inception'; there are umt, i3d-crop, i3d-squash"):
        open_network("inception", tmp_path)


def test_features_that_are_not_finite_are_refused(tiny_umt: Path, clip: np.ndarray) -> None:
    state = load_file(tiny_umt)
    save_file(state | {"vision_proj.bias": state["vision_proj.bias"] / 0}, tiny_umt)
    with pytest.raises(BenchmarkError, match=r"a result is not finite in torch.float32"):
        open_network("umt", tiny_umt)(clip)


def test_weights_of_another_network_are_refused(tiny_umt: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"not the weights of this network \(I3d\): "):
        open_network("i3d-crop", tiny_umt)
