import pytest
import torch
from torch import Generator, Tensor

from demo import shapes
from demo.judges import Judges, footage, frechet, size_spread
from demo.shapes import FRAMES, SIZE, Scenes

CLIPS = 60


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges()


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, Tensor, Scenes]:
    """Sharp and degraded clips of the same scenes."""
    return footage(CLIPS, Generator().manual_seed(99))


@pytest.fixture(scope="module")
def scores(judges: Judges, clips: tuple[Tensor, Tensor, Scenes]) -> tuple[dict[str, float], dict[str, float]]:
    sharp, rough, scenes = clips
    return judges.score(sharp, scenes), judges.score(rough, scenes)


def test_judges_name_real_clips_rightly_sharp_or_degraded(scores: tuple[dict[str, float], dict[str, float]]) -> None:
    for one in scores:
        assert min(one[k] for k in ("shape", "color", "background", "motion")) >= 0.97, one


def test_judges_distinguish_sharp_from_degraded(scores: tuple[dict[str, float], dict[str, float]]) -> None:
    good, bad = scores
    assert good["frame_fd"] < 0.5 * bad["frame_fd"]
    assert good["video_fd"] < bad["video_fd"]
    assert abs(good["watermark"]) < 0.1 < 0.5 < bad["watermark"]


def test_wrong_prompts_score_no_better_than_chance(judges: Judges, clips: tuple[Tensor, Tensor, Scenes]) -> None:
    sharp, _, _ = clips
    others = Scenes.random(CLIPS, Generator().manual_seed(98))
    scores = judges.score(sharp, others)
    assert scores["shape"] < 0.6
    assert scores["color"] < 0.5
    assert scores["motion"] < 0.6


def test_frechet_distance_of_two_known_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances: 3 * 2^2 + 3 * (1 - 2)^2 = 15."""
    a = torch.randn(50_000, 3, generator=Generator().manual_seed(1))
    b = 2 * torch.randn(50_000, 3, generator=Generator().manual_seed(2)) + 2
    assert frechet(a, b) == pytest.approx(15, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-4)


def test_size_spread_is_that_of_the_drawn_shapes() -> None:
    """Squares on white: of one size, then with sides of 8 and 16 px in turn, whose spread is 4 / 12."""
    clips = torch.full((2, FRAMES, 3, SIZE, SIZE), 0.9)
    for frame in range(FRAMES):
        for row, side in enumerate((12, 8 if frame % 2 else 16)):
            corner = 10 + frame
            clips[row, frame, 0, corner : corner + side, corner : corner + side] = -1.0
    assert size_spread(clips).tolist() == pytest.approx([0, 1 / 3], abs=1e-6)


@pytest.mark.slow
def test_size_spread_separates_unrelated_frames_from_a_clip(
    judges: Judges, clips: tuple[Tensor, Tensor, Scenes]
) -> None:
    """Frames of clips of the same scene: each frame is right, but the sizes differ from frame to frame."""
    sharp, _, _ = clips
    same, generator = Scenes(*torch.zeros(4, CLIPS, dtype=torch.int64)), Generator().manual_seed(5)
    drawn, _ = shapes.render(same, generator)
    mixed = torch.stack([drawn[torch.randperm(CLIPS, generator=generator), frame] for frame in range(FRAMES)], 1)
    whole, shuffled = judges.score(drawn, same), judges.score(mixed, same)
    assert whole["size_spread"] < 0.02 < 0.06 < shuffled["size_spread"]
    assert judges.score(sharp, clips[2])["size_spread"] < 0.03
