"""Frames and pixels as each protocol takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.paper import preprocessing
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.preprocessing import middle_frames, strided_frames
from tests.unit.benchmarks.filled_weights import frames

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    ("count", "available", "expected"),
    [
        (12, 16, [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]),
        (12, 24, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (12, 12, list(range(12))),
        (8, 16, [0, 2, 4, 6, 8, 10, 12, 14]),
        (8, 100, [5, 18, 30, 43, 55, 68, 80, 93]),
        (12, 5, [0, 1, 2, 3, 4, *[4] * 7]),
        (12, 1, [0] * 12),
    ],
)
def test_frames_are_the_middle_of_equal_intervals(count: int, available: int, expected: list[int]) -> None:
    assert middle_frames(count, available) == expected


def test_strided_frames_must_all_exist() -> None:
    assert strided_frames(16, 3, 46) == list(range(0, 46, 3))
    with pytest.raises(BenchmarkError, match="takes 46 frames, but a clip has 45; generate longer clips"):
        strided_frames(16, 3, 45)
    with pytest.raises(BenchmarkError, match="takes 1 frames, but a clip has 0"):
        middle_frames(12, 0)


SIZES = [(300, 200), (512, 512), (64, 96)]


@pytest.mark.parametrize("size", SIZES)
def test_umt_pixels_are_torchvisions(size: tuple[int, int]) -> None:
    """Its own squares of 56 px, kept in tests/data: frames smaller, larger and of other proportions."""
    clip = frames((12, *size, 3), size[0])
    expected = load_file(DATA / "golden_paper_networks.safetensors")[f"resized_{size[0]}"]
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD))
    ours = (preprocessing.umt(clip.numpy(), side=56) * std + mean) * 255
    torch.testing.assert_close(ours[:1], expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_umt_pixels_are_those_of_the_installed_torchvision(size: tuple[int, int]) -> None:
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError) as e:  # RuntimeError: it was built for another torch
        pytest.skip(f"torchvision, of the extra bench, is not usable ({e}); its output is compared above")
    clip = frames((12, *size, 3), size[0])
    steps = [
        transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.Lambda(lambda x: x.float().div(255.0)),
        transforms.Normalize(preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD),
    ]
    expected = transforms.Compose(steps)(clip.permute(0, 3, 1, 2))
    torch.testing.assert_close(preprocessing.umt(clip.numpy()), expected, rtol=0, atol=1e-6)


def test_umt_takes_twelve_frames_of_sixteen() -> None:
    clip = np.repeat(np.arange(16, dtype=np.uint8), 8 * 8 * 3).reshape(16, 8, 8, 3)
    pixels = preprocessing.umt(clip, side=8)
    back = (pixels[:, 0, 0, 0] * preprocessing.IMAGENET_STD[0] + preprocessing.IMAGENET_MEAN[0]) * 255
    assert back.round().int().tolist() == middle_frames(12, 16)


def ramp(height: int, width: int) -> np.ndarray:
    """Two frames: brightness rises from left to right in red and from top to bottom in green."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([np.stack([x, y, 0 * x], -1).round().astype(np.uint8)] * 2)


def test_i3d_crop_keeps_proportions_and_cuts_the_longer_side() -> None:
    pixels = preprocessing.i3d_crop(ramp(112, 224))
    assert pixels.shape == (3, 2, 224, 224)
    red, green, blue = pixels[:, 0]
    assert red[0, 0].item() == pytest.approx(-0.5, abs=0.01)  # a quarter of the width is cut on each side
    assert red[0, -1].item() == pytest.approx(0.5, abs=0.01)
    assert (green[0, 0].item(), green[-1, 0].item()) == (pytest.approx(-1), pytest.approx(1))
    assert (blue == -1).all()
    upright = preprocessing.i3d_crop(ramp(224, 112))
    assert upright[1, 0, 0, 0].item() == pytest.approx(-0.5, abs=0.01)


def test_i3d_squash_keeps_all_of_the_frame() -> None:
    pixels = preprocessing.i3d_squash(ramp(112, 448))
    assert pixels.shape == (3, 2, 224, 224)
    assert pixels[0, 0, 0, [0, -1]].tolist() == pytest.approx([-1, 1], abs=0.02)
    assert pixels[1, 0, [0, -1], 0].tolist() == pytest.approx([-1, 1], abs=0.02)


def test_neither_i3d_variant_smooths_before_it_shrinks() -> None:
    """Every second column white: without antialias, exactly the two neighbours are averaged or one of them is taken."""
    stripes = np.zeros((2, 448 * 2, 448 * 2, 3), np.uint8)
    stripes[:, :, ::4] = 255
    for prepare in (preprocessing.i3d_crop, preprocessing.i3d_squash):
        assert set(prepare(stripes).unique().tolist()) == {-1.0}  # it falls between the columns that are sampled


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((2, 8, 8, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
    ids=["float", "one frame", "channels first", "empty"],
)
def test_other_arrays_are_refused(clip: np.ndarray) -> None:
    with pytest.raises(BenchmarkError, match=r"clip must be uint8 \(T, H, W, 3\), not |takes 1 frames"):
        preprocessing.umt(clip)
    with pytest.raises(BenchmarkError, match=r"clip must be uint8 \(T, H, W, 3\), not "):
        preprocessing.i3d_crop(clip)
