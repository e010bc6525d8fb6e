"""Distances between two samples of feature vectors, and how much of a difference is chance.

Samples are arrays (n, d): a row is a clip. Everything is computed in float64 with numpy alone.

No bootstrap: drawing rows with replacement repeats rows, which makes a sample look narrower than it is and biases a
Frechet distance of few clips upwards by a quarter. Spreads come from random halves instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.errors import BenchmarkError

Sample = NDArray[np.float64]
BLOCK_ROWS = 512  # of kernel matrices, which are never held whole
# Relative distance of the features of one clip from two computations. The two files that ChronoMagic-Bench publishes
# share 150 clips, whose rows differ by up to 4e-4, and no other rows are as close unless they are equal.
SAME_CLIP = 1e-3


class FrechetTo:
    """Squared Frechet distance of samples, as Gaussians, to one fixed sample (arXiv:1706.08500 Eq. 6).

    The trace of the square root of the product of two covariances is the nuclear norm of A B^T / sqrt(n m), where A
    and B are the centred samples: no matrix square root, which fails where there are fewer rows than columns.

    Args:
        unbiased_covariance: divide by n - 1; otherwise by n, which is the population covariance.
    """

    def __init__(self, reference: Sample, *, unbiased_covariance: bool = False) -> None:
        self._lost_rows = 1 if unbiased_covariance else 0
        _require_rows("reference", reference)
        self._mean, self._scaled = self._moments(reference)

    def __call__(self, sample: Sample) -> float:
        _require_rows("sample", sample)
        _require_same_width(self._mean.shape[0], sample.shape[1])
        mean, scaled = self._moments(sample)
        means = float(np.square(mean - self._mean).sum())
        traces = float(np.square(self._scaled).sum() + np.square(scaled).sum())
        roots = float(np.linalg.svd(self._scaled @ scaled.T, compute_uv=False).sum())
        return max(0.0, means + traces - 2 * roots)  # rounding can make it -1e-13

    def _moments(self, sample: Sample) -> tuple[Sample, Sample]:
        """Mean (d,), and a matrix with at most d rows whose Gram matrix is the covariance."""
        mean = sample.mean(0)
        centred = (sample - mean) / np.sqrt(len(sample) - self._lost_rows)
        return mean, centred if len(centred) <= centred.shape[1] else np.linalg.qr(centred, mode="r")


def frechet(real: Sample, fake: Sample, *, unbiased_covariance: bool = False) -> float:
    """Squared Frechet distance of two samples (n, d) and (m, d); see `FrechetTo`."""
    return FrechetTo(real, unbiased_covariance=unbiased_covariance)(fake)


@dataclass(frozen=True)
class Averaging:
    """How a protocol turns two samples into one distance: the mean over subsets.

    For each cap and seed, `random.sample` with that seed draws `cap` rows of each sample: the same rows where both
    have as many. A cap of at least the number of rows takes all rows, whatever the seed.
    """

    caps: Sequence[int] = ()
    seeds: Sequence[int] = (0,)
    unbiased_covariance: bool = False


@dataclass(frozen=True)
class CapResult:
    cap: int
    n_real: int
    n_fake: int
    fd: float  # mean over the seeds
    spread: float  # standard deviation over the seeds; 0 where all rows are taken
    takes_all: bool  # neither sample has more rows than the cap


def averaged_frechet(real: Sample, fake: Sample, averaging: Averaging) -> tuple[float, list[CapResult]]:
    """The protocol's distance, and the distance per cap. Without caps: that of all rows."""
    caps = averaging.caps or [max(len(real), len(fake))]
    results = [_at_cap(real, fake, cap, averaging) for cap in caps]
    return float(np.mean([result.fd for result in results])), results


def _at_cap(real: Sample, fake: Sample, cap: int, averaging: Averaging) -> CapResult:
    takes_all = cap >= max(len(real), len(fake))
    values = [
        frechet(
            real[subset(len(real), cap, seed)],
            fake[subset(len(fake), cap, seed)],
            unbiased_covariance=averaging.unbiased_covariance,
        )
        for seed in (averaging.seeds[:1] if takes_all else averaging.seeds)
    ]
    counts = min(cap, len(real)), min(cap, len(fake))
    return CapResult(cap, *counts, float(np.mean(values)), float(np.std(values)), takes_all)


def subset(rows: int, cap: int, seed: int) -> list[int]:
    """Indices of the rows that a protocol takes: all in order, or `cap` of them as `random.sample` draws them."""
    return list(range(rows)) if cap >= rows else random.Random(seed).sample(range(rows), cap)


@dataclass(frozen=True)
class Estimate:
    value: float
    spread: float | None  # estimated standard error; None where the samples are too small to estimate it


def kernel_distance(real: Sample, fake: Sample, *, halves: int = 100, seed: int = 0) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv:1801.01401 Eq. 4): KVD.

    Two samples of one distribution have the expectation 0 at any n; values may be negative. The spread is the
    standard deviation over random halves of each sample, drawn without replacement: for two halves of large samples
    that is the standard error of the whole, and too large rather than too small where both are of one distribution.
    """
    for name, sample in (("real", real), ("fake", fake)):
        _require_rows(name, sample)
    _require_same_width(real.shape[1], fake.shape[1])
    halves = halves if min(len(real), len(fake)) >= 4 else 0  # half of three rows has no pair
    generator = np.random.default_rng(seed)
    of_real, of_fake = (_columns_of_halves(len(sample), halves, generator) for sample in (real, fake))
    values = (
        _within(real, of_real)
        + _within(fake, of_fake)
        - 2 * _kernel_sums(real, fake, of_real, of_fake) / (of_real.sum(0) * of_fake.sum(0))
    )
    return Estimate(float(values[0]), float(values[1:].std(ddof=1)) if halves else None)


def _columns_of_halves(rows: int, halves: int, generator: np.random.Generator) -> Sample:
    """(rows, 1 + halves) of 0 and 1: the first column selects all rows, each other one a random half."""
    chosen = np.zeros((rows, 1 + halves))
    chosen[:, 0] = 1
    for column in range(1, 1 + halves):
        chosen[generator.permutation(rows)[: rows // 2], column] = 1
    return chosen


def _within(sample: Sample, chosen: Sample) -> Sample:
    """Mean kernel of the pairs of different rows, per column of `chosen`."""
    counts = chosen.sum(0)
    own = _kernel(np.square(sample).sum(1), sample.shape[1]) @ chosen
    return (_kernel_sums(sample, sample, chosen, chosen) - own) / (counts * (counts - 1))


def _kernel_sums(left: Sample, right: Sample, chosen_left: Sample, chosen_right: Sample) -> Sample:
    """Sums over the chosen pairs of rows, per column; block by block, so that memory does not grow with n^2."""
    total = np.zeros(chosen_left.shape[1])
    for start in range(0, len(left), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        kernel = _kernel(left[rows] @ right.T, left.shape[1])
        total += (chosen_left[rows] * (kernel @ chosen_right)).sum(0)
    return total


def _kernel(products: Sample, width: int) -> Sample:
    return (products / width + 1) ** 3


@dataclass(frozen=True)
class PairedDifference:
    """Statistic of arm A less that of arm B, over the same prompts."""

    difference: float
    interval: tuple[float, float]  # 95 %
    p: float
    permutations: int


Statistic = Callable[[Sample], float]


def paired_permutation(
    statistic: Statistic, a: Sample, b: Sample, *, permutations: int = 999, halves: int = 100, seed: int = 0
) -> PairedDifference:
    """Whether two arms differ in `statistic`, for example `FrechetTo(real)` or a mean score.

    Under the hypothesis that the arms do not differ, the outputs of both for one prompt can be exchanged. `p` is the
    share of random exchanges, the given one included, with a difference at least as large in absolute value: exact
    for any statistic. The interval is the difference plus and minus 1.96 standard deviations over random halves of
    the prompts, the same in both arms; for Frechet distances of few clips it is too wide rather than too narrow.

    Args:
        a, b: first axis the prompts in the same order; further axes as `statistic` takes them.
    """
    if a.shape != b.shape or len(a) < 4:
        raise BenchmarkError(
            f"paired arms need the same 4 or more prompts, but have the shapes {a.shape} and {b.shape}"
        )
    generator = np.random.default_rng(seed)
    difference = statistic(a) - statistic(b)
    bound = abs(difference) * (1 - 1e-9)  # an exchange of all prompts is the same difference up to rounding
    as_large = 1
    for _ in range(permutations):
        swapped = (generator.random(len(a)) < 0.5).reshape(-1, *[1] * (a.ndim - 1))
        exchanged = statistic(np.where(swapped, b, a)) - statistic(np.where(swapped, a, b))
        as_large += abs(exchanged) >= bound
    rows = [generator.permutation(len(a))[: len(a) // 2] for _ in range(halves)]
    margin = 1.96 * float(np.std([statistic(a[half]) - statistic(b[half]) for half in rows], ddof=1))
    interval = (difference - margin, difference + margin)
    return PairedDifference(difference, interval, as_large / (1 + permutations), permutations)


def real_floor(reference: Sample, others: Sample, averaging: Averaging, *, draws: int = 4, seed: int = 0) -> Estimate:
    """What a perfect generator scores: the protocol's distance of the reference to as many other real clips.

    Args:
        others: real clips. Those that are in the reference are left out, also if their features were computed in
            another batch; the rest must be as many as the reference.

    Returns:
        Mean and standard deviation over the draws.
    """
    _require_same_width(reference.shape[1], others.shape[1])
    left = [index for index, row in enumerate(others) if not _is_among(row, reference)]
    if len(left) < len(reference):
        raise BenchmarkError(
            f"the floor at n = {len(reference)} needs as many real clips that are not in the reference, but there are "
            f"{len(left)}; give more real clips"
        )
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(left)[: len(reference)] for _ in range(draws)]
    values = [averaged_frechet(reference, others[rows], averaging)[0] for rows in chosen]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))


def floor_of_halves(real: Sample, averaging: Averaging, *, draws: int = 4, seed: int = 0) -> Estimate:
    """The floor where all real clips are the reference: the protocol's distance of two random halves of them.

    Each half has len(real) // 2 clips, so caps above that take all of it, and the floor at the full number is lower.

    Returns:
        Mean and standard deviation over the draws.
    """
    half = len(real) // 2
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(real)) for _ in range(draws)]
    values = [averaged_frechet(real[order[:half]], real[order[half : 2 * half]], averaging)[0] for order in orders]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))


def _is_among(row: Sample, sample: Sample) -> bool:
    return bool((np.linalg.norm(sample - row, axis=1) <= SAME_CLIP * np.linalg.norm(row)).any())


def _require_rows(name: str, sample: Sample) -> None:
    if sample.ndim != 2 or len(sample) < 2:
        raise BenchmarkError(
            f"{name} must be an array (n, d) of two or more rows, one per clip, but has the shape {sample.shape}"
        )


def _require_same_width(one: int, other: int) -> None:
    if one != other:
        raise BenchmarkError(
            f"the two samples have {one} and {other} features per clip; take both from the same network"
        )
