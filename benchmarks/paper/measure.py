"""Numbers of a run: distances, scores, the floor, and which differences between arms are more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.paper.averagings import averaging_of
from benchmarks.paper.distances import (
    Averaging,
    Estimate,
    FrechetTo,
    averaged_frechet,
    floor_of_halves,
    kernel_distance,
    paired_permutation,
    real_floor,
)
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.networks import Array, ClipFeatures, Columns, RealSet
from benchmarks.paper.protocols import Protocol

LEAST_PAIRS = 4  # prompts, of a permutation test
SUBSAMPLES = 20


@dataclass(frozen=True)
class ArmFeatures:
    """Of all clips of an arm.

    Args:
        spaces: (prompts, clips, k, d) by space.
        scores: (prompts, clips) by score.
    """

    spaces: Mapping[str, Array]
    scores: Mapping[str, Array]

    @staticmethod
    def of(clips: Sequence[Sequence[ClipFeatures]], columns: Columns) -> ArmFeatures:
        """`clips[prompt][repeat]`."""
        spaces = {name: np.array([[clip.spaces[name] for clip in row] for row in clips]) for name in columns.spaces}
        scores = {name: np.array([[clip.scores[name] for clip in row] for row in clips]) for name in columns.scores}
        return ArmFeatures(spaces, scores)


def arm_numbers(arm: ArmFeatures, real: RealSet, protocol: Protocol, columns: Columns) -> dict[str, Any]:
    """Distances by space and scores by name, each with its spread."""
    spaces = {name: _distances(arm.spaces[name], real.reference[name], protocol) for name in columns.spaces}
    return {"distances": spaces, "scores": {name: _mean(arm.scores[name]) for name in columns.scores}}


def _distances(clips: Array, reference: Array, protocol: Protocol) -> dict[str, Any]:
    """`clips` (prompts, parts, k, d), `reference` (n, k, d)."""
    averaging, real = averaging_of(protocol), _rows(reference)
    parts = [_rows(part) for part in _parts(clips, protocol)]
    values = [averaged_frechet(real, part, averaging)[0] for part in parts]
    kernel = kernel_distance(real, np.concatenate(parts))
    kind, spread = "parts", float(np.std(values, ddof=1)) if len(values) > 1 else None
    if spread is None:
        kind, spread = "halves", _spread_of_halves(reference, clips)
    return {
        "fd": float(np.mean(values)),
        "fd_parts": values,
        "fd_spread": spread,
        "fd_spread_of": kind,
        "kvd": kernel.value,
        "kvd_spread": kernel.spread,
    }


def _parts(clips: Array, protocol: Protocol) -> list[Array]:
    """(n, k, d) of every part whose distance is averaged: each repeat of the prompts, or all clips as one."""
    if protocol.parts.value == "pooled":
        return [clips.reshape(-1, *clips.shape[2:])]
    return [clips[:, part] for part in range(clips.shape[1])]


def _rows(vectors: Array) -> Array:
    """(n, k, d) -> (n k, d)."""
    return vectors.reshape(-1, vectors.shape[-1])


def _spread_of_halves(reference: Array, clips: Array) -> float | None:
    """Standard deviation of the distance over random halves, drawn without replacement: of the prompts, the same in
    both, where there is a real clip for each; else of the prompts and of the real clips."""
    if min(len(reference), len(clips)) < LEAST_PAIRS:
        return None
    generator = np.random.default_rng(0)

    def distance() -> float:
        chosen = generator.permutation(len(clips))[: len(clips) // 2]
        is_paired = len(reference) == len(clips)
        real = chosen if is_paired else generator.permutation(len(reference))[: len(reference) // 2]
        return FrechetTo(_rows(reference[real]))(_rows(clips[chosen]))

    return float(np.std([distance() for _ in range(SUBSAMPLES)], ddof=1))


def _mean(scores: Array) -> dict[str, Any]:
    """Mean, and its spread: over the parts, or with one part the standard error over the prompts."""
    parts = scores.mean(0)
    if len(parts) > 1:
        return {"mean": float(parts.mean()), "spread": float(np.std(parts, ddof=1)), "spread_of": "parts"}
    error = float(np.std(scores, ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None
    return {"mean": float(parts.mean()), "spread": error, "spread_of": "prompts"}


def floor(real: RealSet, protocol: Protocol, columns: Columns) -> dict[str, Any]:
    """By space, what as many other real clips score; `value` None with the reason where there are too few."""
    return {name: _floor(real, name, averaging_of(protocol)) for name in columns.spaces}


def _floor(real: RealSet, space: str, averaging: Averaging) -> dict[str, Any]:
    reference = real.reference[space]
    unknown = {"value": None, "spread": None, "n": len(reference)}
    if real.others is None:
        return unknown | {"reason": _without_others(reference, averaging)}
    others = real.others[space]
    try:
        found = real_floor(_rows(reference), _rows(others), averaging) if reference.shape[1] == 1 else None
    except BenchmarkError as e:
        return unknown | {"reason": e.message}
    found = found or _floor_of_frames(reference, others, averaging)
    return {"value": found.value, "spread": found.spread, "n": len(reference), "reason": None}


def _without_others(reference: Array, averaging: Averaging) -> str:
    """Why the floor is not known, and what comes next to it: at half as many clips, where it is higher."""
    reason, half = "there are no other real clips", len(reference) // 2
    if half < LEAST_PAIRS or reference.shape[1] != 1:
        return reason
    found = floor_of_halves(_rows(reference), averaging)
    return f"{reason}; two halves of them, {half} clips each, are {found.value:.1f} ± {found.spread:.1f} apart"


def _floor_of_frames(reference: Array, others: Array, averaging: Averaging) -> Estimate:
    """Where a clip is several vectors, whole clips are drawn: the frames of one are alike."""
    sets = [others[i : i + len(reference)] for i in range(0, len(others) - len(reference) + 1, len(reference))]
    values = [averaged_frechet(_rows(reference), _rows(each), averaging)[0] for each in sets]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def differences(
    arms: Mapping[str, ArmFeatures],
    baseline: str,
    real: RealSet,
    protocol: Protocol,
    columns: Columns,
    permutations: int,
) -> dict[str, Any]:
    """By arm, its distance and score less the baseline's, over the same prompts and noise."""
    unbiased = averaging_of(protocol).unbiased_covariance
    to_real = FrechetTo(_rows(real.reference[columns.space]), unbiased_covariance=unbiased)
    of_distance = partial(_distance_of_parts, to_real, protocol)
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        if name == baseline or len(arm.spaces[columns.space]) < LEAST_PAIRS:
            continue
        pairs = (arm.spaces[columns.space], arms[baseline].spaces[columns.space])
        found[name] = {"distance": _paired(of_distance, *pairs, permutations), "score": None}
        if columns.score is not None:
            pairs = (arm.scores[columns.score], arms[baseline].scores[columns.score])
            found[name]["score"] = _paired(lambda scores: float(scores.mean()), *pairs, permutations)
    return found


def _distance_of_parts(to_real: FrechetTo, protocol: Protocol, clips: Array) -> float:
    """Of all rows: the protocol's caps would cost their number of times more, and change little of a difference."""
    return float(np.mean([to_real(_rows(part)) for part in _parts(clips, protocol)]))


def _paired(statistic: Callable[[Array], float], ours: Array, theirs: Array, permutations: int) -> dict[str, Any]:
    found = paired_permutation(statistic, ours, theirs, permutations=permutations)
    return {
        "difference": found.difference,
        "interval": list(found.interval),
        "p": found.p,
        "permutations": found.permutations,
    }
