"""Distances against closed forms, other computations and published real features."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import distances
from benchmarks.paper.averagings import averaging_of
from benchmarks.paper.distances import (
    Averaging,
    CapResult,
    FrechetTo,
    Sample,
    averaged_frechet,
    floor_of_halves,
    frechet,
    kernel_distance,
    paired_permutation,
    real_floor,
    subset,
)
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.protocols import protocol

# A folder with gt150.npy and gt1649.npy: the real features that ChronoMagic-Bench publishes, as arrays (n, 768). Read
# now, because a fixture removes the variables of ivmix.
PUBLISHED = os.environ.get("IVMIX_UMT_FEATURES")
needs_published = pytest.mark.skipif(
    PUBLISHED is None, reason="set IVMIX_UMT_FEATURES to the folder of gt150.npy and gt1649.npy; docs/distances.md"
)


CHRONOMAGIC = averaging_of(protocol("chronomagic-150"))


def published(name: str) -> Sample:
    assert PUBLISHED is not None
    return np.load(Path(PUBLISHED) / name).astype(np.float64)


def normal(n: int, d: int, seed: int) -> Sample:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) / d**0.5 + generator.standard_normal(d)


def standardised(n: int, d: int, seed: int) -> Sample:
    """Mean exactly 0 and population covariance exactly the identity."""
    noise = np.random.default_rng(seed).standard_normal((n, d))
    return np.linalg.qr(noise - noise.mean(0))[0] * n**0.5


def by_eigenvalues(a: Sample, b: Sample, ddof: int = 0) -> float:
    """The definition, with the eigenvalues of the product of the covariances."""
    cov_a, cov_b = (np.cov(each, rowvar=False, ddof=ddof) for each in (a, b))
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots)


@pytest.mark.parametrize("rotated", [False, True], ids=["diagonal", "commuting"])
def test_gaussians_with_the_same_axes_have_the_closed_form(rotated: bool) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.uniform(0.1, 3, (2, 8))
    means = generator.standard_normal((2, 8))
    axes = np.linalg.qr(generator.standard_normal((8, 8)))[0] if rotated else np.eye(8)
    a, b = (standardised(60, 8, i) * sizes[i] @ axes + means[i] for i in (0, 1))
    exact = np.square(means[0] - means[1]).sum() + np.square(sizes[0] - sizes[1]).sum()
    assert frechet(a, b) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("n", [12, 300], ids=["fewer rows than columns", "more rows"])
def test_a_sample_has_no_distance_to_itself(n: int) -> None:
    sample = normal(n, 40, 1)
    assert frechet(sample, sample) < 1e-11
    assert frechet(sample, sample[::-1]) < 1e-11


@pytest.mark.parametrize(("n", "m"), [(300, 250), (20, 25), (20, 300), (300, 20)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_the_nuclear_norm_is_the_trace_of_the_root(n: int, m: int, ddof: int) -> None:
    a, b = normal(n, 40, 2), normal(m, 40, 3)
    # The product of singular covariances has eigenvalues of 1e-16 instead of 0, whose roots are 1e-8 each.
    assert frechet(a, b, unbiased_covariance=ddof == 1) == pytest.approx(by_eigenvalues(a, b, ddof), rel=1e-6)


@pytest.mark.parametrize(("n", "m", "rel"), [(300, 250, 1e-9), (20, 25, 1e-5)])
def test_the_nuclear_norm_agrees_with_scipy(n: int, m: int, rel: float) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed; the eigenvalues above are compared")
    a, b = normal(n, 40, 2), normal(m, 40, 3)
    cov_a, cov_b = (np.cov(each, rowvar=False, ddof=0) for each in (a, b))
    # Singular matrices have no unique root: a small multiple of the identity is the usual way out.
    offset = 0 if n > 40 else 1e-12
    root = linalg.sqrtm(cov_a @ cov_b + offset * np.eye(40)).real
    by_scipy = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet(a, b) == pytest.approx(by_scipy, rel=rel)


def test_symmetric_and_blind_to_the_order_of_rows() -> None:
    a, b = normal(30, 40, 4), normal(50, 40, 5)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert FrechetTo(a)(b) == pytest.approx(FrechetTo(a[::-1])(b[::-1]), rel=1e-12)


def test_unequal_and_too_small_samples_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="40 and 41 features per clip; take both from the same network"):
        frechet(normal(30, 40, 4), normal(30, 41, 5))
    for distance in (frechet, kernel_distance):
        with pytest.raises(BenchmarkError, match=r"two or more rows.*\(1, 40\)"):
            distance(normal(30, 40, 4), normal(1, 40, 5))


def test_chronomagic_averages_seven_caps_and_four_seeds() -> None:
    expected = Averaging(caps=(32, 64, 128, 256, 300, 512, 1024), seeds=(12, 22, 32, 42))
    assert CHRONOMAGIC == averaging_of(protocol("chronomagic-1649")) == expected
    assert averaging_of(protocol("ucf-101-lavie")) == Averaging(unbiased_covariance=True)


@pytest.mark.parametrize("seed", CHRONOMAGIC.seeds)
def test_a_subset_is_what_random_sample_draws_from_a_list(seed: int) -> None:
    random.seed(seed)
    assert subset(150, 32, seed) == random.sample(list(range(150)), 32)
    assert subset(150, 150, seed) == subset(150, 1024, seed) == list(range(150))


def test_a_protocol_averages_seeds_within_caps_and_then_caps() -> None:
    a, b = normal(70, 5, 6), normal(70, 5, 7)
    average, caps = averaged_frechet(a, b, Averaging(caps=(32, 64, 128), seeds=(12, 22)))
    rows = [[subset(70, cap, seed) for seed in (12, 22)] for cap in (32, 64)]
    by_hand = [np.mean([frechet(a[each], b[each]) for each in of_cap]) for of_cap in rows] + [frechet(a, b)]
    assert average == pytest.approx(np.mean(by_hand), rel=1e-12)
    assert [each.fd for each in caps] == pytest.approx(by_hand, rel=1e-12)
    assert [(each.n_real, each.n_fake, each.takes_all) for each in caps] == [
        (32, 32, False),
        (64, 64, False),
        (70, 70, True),
    ]
    assert averaged_frechet(a, b, Averaging())[0] == frechet(a, b)


def test_unequal_samples_are_capped_one_by_one() -> None:
    a, b = normal(70, 5, 6), normal(40, 5, 7)
    average, (cap,) = averaged_frechet(a, b, Averaging(caps=(50,), seeds=(12,)))
    assert (cap.n_real, cap.n_fake, cap.takes_all) == (50, 40, False)
    assert average == frechet(a[subset(70, 50, 12)], b)


def kernel_distance_by_loops(a: Sample, b: Sample) -> float:
    def kernel(x: Sample, y: Sample) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(rows: Sample) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return float(np.mean([kernel(rows[i], rows[j]) for i, j in pairs]))

    return within(a) + within(b) - 2 * float(np.mean([kernel(x, y) for x in a for y in b]))


@pytest.mark.parametrize("block", [4, 512])
def test_the_kernel_distance_is_its_definition_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK_ROWS", block)
    a, b = normal(11, 6, 8), normal(9, 6, 9)
    assert kernel_distance(a, b).value == pytest.approx(kernel_distance_by_loops(a, b), rel=1e-10)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    generator = np.random.default_rng(10)
    values = [kernel_distance(*generator.standard_normal((2, 20, 4)), halves=2).value for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 400**0.5
    assert min(values) < 0  # unbiased, so it cannot always be positive


def test_the_spread_is_the_standard_error_and_too_large_without_a_difference() -> None:
    generator = np.random.default_rng(11)
    for shift, low, high in ((1.0, 0.75, 1.4), (0.0, 1.0, 2.5)):
        shifts = np.array([shift, 0])[:, None, None]
        draws = [generator.standard_normal((2, 80, 4)) + shifts for _ in range(150)]
        estimates = [kernel_distance(*draw, halves=40) for draw in draws]
        truth = np.std([each.value for each in estimates])
        assert low < np.mean([each.spread or 0 for each in estimates]) / truth < high


def test_three_clips_have_a_kernel_distance_without_a_spread() -> None:
    assert kernel_distance(normal(3, 4, 1), normal(9, 4, 2)).spread is None
    assert kernel_distance(normal(4, 4, 1), normal(9, 4, 2)).spread is not None


def test_arms_that_are_the_same_do_not_differ() -> None:
    arm = normal(20, 4, 12)
    result = paired_permutation(FrechetTo(normal(40, 4, 13)), arm, arm, permutations=19)
    assert (result.difference, result.p, result.interval) == (0, 1, (0, 0))


def test_a_worse_arm_is_found_and_its_difference_is_in_the_interval() -> None:
    generator = np.random.default_rng(14)
    real = generator.standard_normal((400, 4))
    better = generator.standard_normal((100, 4))
    worse = better + np.array([0.8, 0, 0, 0])
    result = paired_permutation(FrechetTo(real), worse, better, permutations=99)
    assert result.p == 1 / 100
    assert result.interval[0] < 0.64 < result.interval[1]
    assert result.interval[0] > 0
    opposite = paired_permutation(FrechetTo(real), better, worse, permutations=99)
    assert (opposite.difference, opposite.p) == (pytest.approx(-result.difference), result.p)


def test_p_is_uniform_between_arms_of_one_distribution() -> None:
    """On few clips a Frechet distance is mostly bias, which is why this is not a test of normal distributions."""
    generator = np.random.default_rng(15)
    distance = FrechetTo(generator.standard_normal((50, 3)))
    arms = [generator.standard_normal((2, 8, 3)) for _ in range(200)]
    values = np.array([paired_permutation(distance, *pair, permutations=19, halves=2).p for pair in arms])
    assert 0.01 <= np.mean(values <= 0.05) <= 0.10
    assert 0.40 <= np.mean(values <= 0.5) <= 0.62


def test_scores_are_compared_like_features() -> None:
    generator = np.random.default_rng(16)
    scores = generator.standard_normal((60, 1))
    result = paired_permutation(lambda rows: float(rows.mean()), scores + 0.2, scores, permutations=99)
    assert (result.difference, result.p) == (pytest.approx(0.2), 1 / 100)
    with pytest.raises(BenchmarkError, match=r"same 4 or more prompts.*\(60, 1\) and \(59, 1\)"):
        paired_permutation(lambda rows: float(rows.mean()), scores, scores[1:])


def test_the_floor_takes_other_real_clips_only() -> None:
    pool = normal(60, 4, 17)
    reference = pool[:20] * (1 + 3e-4)  # computed again, in half precision
    floor = real_floor(reference, pool, Averaging(), draws=3)
    others = real_floor(reference, pool[20:], Averaging(), draws=3)
    assert floor == others
    assert floor.value > 0.01  # the same clips would give 0
    with pytest.raises(BenchmarkError, match=r"floor at n = 40 needs as many real clips .* but there are 20"):
        real_floor(pool[:40], pool, Averaging())


def test_the_floor_of_halves_compares_clips_with_other_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    real = normal(41, 4, 18)
    halves: list[tuple[Sample, Sample]] = []

    def recorded(one: Sample, other: Sample, averaging: Averaging) -> tuple[float, list[CapResult]]:
        halves.append((one, other))
        return averaged_frechet(one, other, averaging)

    monkeypatch.setattr(distances, "averaged_frechet", recorded)
    floor = floor_of_halves(real, Averaging(), draws=5)
    assert all(len(one) == len(other) == 20 for one, other in halves)
    assert all(len(np.unique(np.concatenate(each), axis=0)) == 40 for each in halves)
    assert floor.value == pytest.approx(np.mean([frechet(*each) for each in halves]))
    assert floor.spread == pytest.approx(np.std([frechet(*each) for each in halves], ddof=1))


@needs_published
def test_published_real_clips_are_237_9_from_each_other() -> None:
    """The floor of the paper's first table: 150 real clips against 150 other real ones, by the exact protocol."""
    floor = real_floor(published("gt150.npy"), published("gt1649.npy"), CHRONOMAGIC, draws=8)
    assert floor.value == pytest.approx(237.9, abs=3.5)


@needs_published
def test_published_real_clips_have_no_kernel_distance() -> None:
    real = published("gt1649.npy")
    order = np.random.default_rng(0).permutation(len(real))
    for n in (150, 824):
        estimate = kernel_distance(real[order[:n]], real[order[-n:]])
        assert estimate.spread is not None
        assert abs(estimate.value) < 2 * estimate.spread


@needs_published
def test_the_floor_of_the_long_list_is_as_high_as_published_figures() -> None:
    """Halves of 824: of its leaderboard, one model has 178.5 and another 197.9."""
    floor = floor_of_halves(published("gt1649.npy"), CHRONOMAGIC)
    assert floor.value == pytest.approx(190.8, abs=6)
