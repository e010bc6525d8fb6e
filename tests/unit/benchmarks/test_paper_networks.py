"""UMT, its text half and I3D: names, shapes and outputs of the original modules (tests/data/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.paper.bert_fusion import BertSizes
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.i3d import I3d
from benchmarks.paper.umt import Umt, UmtSizes
from benchmarks.paper.weights import load_strict, umt_names
from tests.unit.benchmarks.filled_weights import filled, frames

DATA = Path(__file__).parents[2] / "data"
TINY = UmtSizes(
    width=32,
    depth=3,
    heads=4,
    image=32,
    frames=4,
    projected=20,
    text=BertSizes(width=24, layers=4, first_fusion_layer=2, heads=3, inner=48, vocabulary=40, positions=32),
)
# Ours differ by 7e-7; another epsilon of a normalisation, the smallest mistake that was tried, by 1e-5.
CLOSE = {"rtol": 1e-6, "atol": 4e-6}


def original_names(network: str) -> dict[str, list[int]]:
    """Name to shape, as the original module of full size has them."""
    names = {}
    for entry in json.loads((DATA / "paper_network_names.json").read_text())[network]:
        first, last = entry.get("layers", (0, 0))
        names |= {entry["name"].replace("*", str(layer)): entry["shape"] for layer in range(first, last + 1)}
    return names


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "golden_paper_networks.safetensors")


@pytest.fixture(scope="module")
def tiny() -> Umt:
    return load_strict(lambda: Umt(TINY), filled(Umt(TINY)), "tiny")


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return frames((2, 4, 3, 32, 32), 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def text() -> tuple[Tensor, Tensor]:
    is_token = torch.ones(2, 9, dtype=torch.bool)
    is_token[1, 6:] = False
    return frames((2, 9), 2).long() % 40, is_token


@pytest.mark.parametrize(
    ("network", "build", "one"), [("umt", Umt, "vision_proj.weight"), ("i3d", I3d, "logits.conv3d.bias")]
)
def test_full_size_has_the_names_and_shapes_of_the_original(
    network: str, build: Callable[[], nn.Module], one: str
) -> None:
    published = {name: torch.empty(shape, device="meta") for name, shape in original_names(network).items()}
    state = umt_names(published) if network == "umt" else published
    assert len(published) - len(state) == (1 if network == "umt" else 0)  # the numbers of BERT's positions
    module = load_strict(build, state, network).to("meta")
    with torch.device("meta"):
        if isinstance(module, Umt):
            features, scores = module.features_and_scores(
                torch.empty(2, 12, 3, 224, 224), torch.zeros(2, 32, dtype=torch.long), torch.ones(2, 32).bool()
            )
            assert (features.shape, scores.shape) == ((2, 768), (2,))
        else:
            assert module(torch.empty(2, 3, 16, 224, 224)).shape == (2, 400)
    with pytest.raises(BenchmarkError, match=f"1 missing: {one}"):
        load_strict(build, {name: value for name, value in state.items() if name != one}, network)


def test_the_published_file_has_the_size_of_these_weights_and_two_moments_each() -> None:
    """7.92 GB: float32 weights and the two moments that AdamW keeps of each, so no other networks are in it."""
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Umt().parameters())
    assert count * 4 * 3 / 1e9 == pytest.approx(7.92, abs=0.01)


def test_video_half_is_the_original(tiny: Umt, clips: Tensor, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        patches, _ = tiny.vision_encoder(clips)
        features = tiny.features(clips)
    torch.testing.assert_close(patches, golden["umt_patches"], **CLOSE)
    torch.testing.assert_close(features, golden["umt_features"], **CLOSE)


def test_text_half_and_score_are_the_original(
    tiny: Umt, clips: Tensor, text: tuple[Tensor, Tensor], golden: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        encoded = tiny.text_encoder.encode(*text)
        features, scores = tiny.features_and_scores(clips, *text)
    is_token = text[1]
    torch.testing.assert_close(encoded[is_token], golden["umt_text"][is_token], **CLOSE)
    torch.testing.assert_close(scores, golden["umt_scores"], **CLOSE)
    torch.testing.assert_close(features, golden["umt_features"], **CLOSE)


def test_padding_does_not_change_a_score(tiny: Umt, clips: Tensor, text: tuple[Tensor, Tensor]) -> None:
    tokens, is_token = text
    with torch.no_grad():
        _, padded = tiny.features_and_scores(clips[1:], tokens[1:], is_token[1:])
        _, alone = tiny.features_and_scores(clips[1:], tokens[1:, :6], is_token[1:, :6])
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "seed"),
    [
        ((1, 3, 9, 197, 211), 3),  # odd sizes, where SAME pads more at the end
        pytest.param((1, 3, 16, 224, 224), 4, marks=pytest.mark.slow),
    ],
    ids=["9 frames", "16 frames"],
)
def test_i3d_is_the_original(shape: tuple[int, ...], seed: int, golden: dict[str, Tensor]) -> None:
    network = load_strict(I3d, filled(I3d()), "filled")
    with torch.no_grad():
        logits = network(frames(shape, seed).float() / 127.5 - 1)
    torch.testing.assert_close(logits, golden[f"i3d_{shape[2]}"], rtol=1e-5, atol=1e-5)


def test_clips_of_another_shape_are_refused(tiny: Umt) -> None:
    with pytest.raises(BenchmarkError, match=r"shape \(n, 4, 3, 32, 32\), not .*\[1, 3, 4, 32, 32\]"):
        tiny.features(torch.zeros(1, 3, 4, 32, 32))
    with torch.device("meta"):
        network = I3d()
        for shape in ((1, 3, 8, 224, 224), (1, 3, 16, 192, 224), (1, 3, 16, 224, 225), (3, 16, 224, 224)):
            with pytest.raises(
                BenchmarkError, match=r"9 or more frames and 193 to 224 pixels in height and width, not"
            ):
                network(torch.zeros(shape))
    with pytest.raises(BenchmarkError, match="33 tokens, at most 32"):
        tiny.text_encoder.encode(torch.zeros(1, 33, dtype=torch.long), torch.ones(1, 33, dtype=torch.bool))
