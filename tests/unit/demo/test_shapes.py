import pytest
import torch
from torch import Generator

from demo import shapes
from demo.judges import positions, watermark_correlation
from demo.shapes import FRAMES, MOTIONS, SIZE, Scenes
from service.catalog.registry import ModelRegistry


@pytest.fixture
def scenes() -> Scenes:
    return Scenes.random(60, Generator().manual_seed(1))


def test_captions_say_what_is_drawn() -> None:
    assert shapes.caption(0, 0, 2, 1) == "a red circle moving right on a teal background"
    assert shapes.caption(2, None, None, None) == "a triangle"


def test_model_registry_promises_exactly_the_words_of_the_world() -> None:
    entry = ModelRegistry.load().get("demo")
    assert entry.prompt is not None
    assert entry.prompt.vocabulary == frozenset(shapes.VOCABULARY)
    assert (entry.num_frames.default, entry.fps.default) == (FRAMES, shapes.FPS)
    assert entry.sizes[0] == f"{SIZE * entry.upscale}x{SIZE * entry.upscale}"
    assert all(word in entry.prompt.can_draw for word in shapes.VOCABULARY if word not in ("low", "quality"))


def test_same_generator_draws_the_same_clips(scenes: Scenes) -> None:
    first, second = (shapes.render(scenes, Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (60, FRAMES, 3, SIZE, SIZE)
    assert first.abs().max() <= 1


def test_shape_is_drawn_where_and_in_the_colour_it_should_be(scenes: Scenes) -> None:
    frames, centers = shapes.render(scenes, Generator().manual_seed(3))
    colors = torch.tensor(list(shapes.COLORS.values()))[scenes.color]
    for f in range(FRAMES):
        x, y = centers[:, f].round().long().unbind(-1)
        at_center = (frames[torch.arange(60), f, :, y, x] + 1) / 2
        torch.testing.assert_close(at_center, colors, atol=0.02, rtol=0)


def test_shape_stays_in_the_picture_and_moves_the_way_the_caption_says(scenes: Scenes) -> None:
    frames, centers = shapes.render(scenes, Generator().manual_seed(3))
    velocity = centers.diff(dim=1)
    direction = torch.tensor(list(MOTIONS.values()))[scenes.motion]
    along = (velocity * direction[:, None]).sum(-1)
    assert along.min() >= shapes.SPEED[0] - 1e-4
    assert along.max() <= shapes.SPEED[1] + 1e-4
    border = torch.cat([frames[..., 0, :], frames[..., -1, :], frames[..., 0], frames[..., -1]], -1)
    assert border.diff(dim=1).abs().max() < 0.05  # nothing ever moves at the border


def test_tracker_follows_sharp_and_degraded_shapes(scenes: Scenes) -> None:
    frames, centers = shapes.render(scenes, Generator().manual_seed(3))
    for clips in (frames, shapes.degrade(frames, Generator().manual_seed(4))):
        found = positions(clips)
        assert (found - found.mean(1, keepdim=True) - (centers - centers.mean(1, keepdim=True))).abs().mean() < 0.3


def test_watermark_is_in_degraded_footage_only(scenes: Scenes) -> None:
    frames, _ = shapes.render(scenes, Generator().manual_seed(3))
    assert watermark_correlation(frames).abs().mean() < 0.1
    assert watermark_correlation(shapes.degrade(frames, Generator().manual_seed(4))).mean() > 0.6
