"""Numbers of arms from features of known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paper.distances import frechet
from benchmarks.paper.measure import ArmFeatures, arm_numbers, differences, floor
from benchmarks.paper.networks import Array, ClipFeatures, Columns, RealSet
from benchmarks.paper.protocols import protocol

DEMO = protocol("demo")
COLUMNS = Columns(spaces={"video": "FD", "frame": "frame FD"}, scores={"score": "score"})
N, FRAMES = 60, 3


def clip(generator: np.random.Generator, shift: float) -> ClipFeatures:
    spaces = {"video": generator.standard_normal((1, 4)) + shift, "frame": generator.standard_normal((FRAMES, 4))}
    return ClipFeatures(spaces, {"score": 1 - shift + 0.1 * generator.standard_normal()})


def arm(seed: int, shift: float, repeats: int) -> ArmFeatures:
    generator = np.random.default_rng(seed)
    return ArmFeatures.of([[clip(generator, shift) for _ in range(repeats)] for _ in range(N)], COLUMNS)


def real(generator: np.random.Generator, n: int) -> dict[str, Array]:
    return {"video": generator.standard_normal((n, 1, 4)), "frame": generator.standard_normal((n, FRAMES, 4))}


@pytest.fixture(scope="module")
def reals() -> RealSet:
    generator = np.random.default_rng(1)
    return RealSet(real(generator, N), real(generator, 2 * N), "drawn")


def test_distances_are_means_over_the_repeats(reals: RealSet) -> None:
    found, features = arm_numbers(arm(2, 1.0, 3), reals, DEMO, COLUMNS), arm(2, 1.0, 3)
    rows = reals.reference["video"][:, 0]
    expected = [frechet(rows, features.spaces["video"][:, repeat, 0]) for repeat in range(3)]
    video = found["distances"]["video"]
    assert video["fd_parts"] == pytest.approx(expected)
    assert video["fd"] == pytest.approx(np.mean(expected))
    assert video["fd_spread"] == pytest.approx(np.std(expected, ddof=1))
    assert found["distances"]["frame"]["fd"] < 0.5 < 3 < video["fd"] < 6  # four dimensions, shifted by one
    assert found["scores"]["score"]["mean"] == pytest.approx(0, abs=0.05)


def test_one_repeat_has_its_spread_from_halves_of_the_prompts(reals: RealSet) -> None:
    found = arm_numbers(arm(3, 0.0, 1), reals, DEMO, COLUMNS)
    assert found["distances"]["video"]["fd_spread_of"] == "halves"
    assert 0 < found["distances"]["video"]["fd_spread"] < 0.5
    assert found["scores"]["score"]["spread_of"] == "prompts"
    assert found["scores"]["score"]["spread"] == pytest.approx(0.1 / N**0.5, rel=0.3)


def test_the_floor_is_what_as_many_other_real_clips_score(reals: RealSet) -> None:
    found = floor(reals, DEMO, COLUMNS)
    assert 0.05 < found["video"]["value"] < 0.6
    assert found["video"]["n"] == N
    assert 0 < found["frame"]["value"] < found["video"]["value"]  # three times as many rows
    alone = RealSet(reals.reference, None, "drawn")
    assert floor(alone, DEMO, COLUMNS)["video"]["value"] is None


def test_an_arm_that_differs_differs_and_one_that_does_not_does_not(reals: RealSet) -> None:
    arms = {"ddim-matched": arm(4, 0.0, 2), "same": arm(5, 0.0, 2), "worse": arm(6, 0.5, 2)}
    found = differences(arms, "ddim-matched", reals, DEMO, COLUMNS, 99)
    assert set(found) == {"same", "worse"}
    assert found["worse"]["distance"]["p"] == found["worse"]["score"]["p"] == 0.01
    assert found["worse"]["distance"]["interval"][0] > 0
    assert found["same"]["distance"]["p"] > 0.05
