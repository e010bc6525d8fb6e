"""Which subsets of the rows each protocol averages a Frechet distance over."""

from __future__ import annotations

from benchmarks.paper.distances import Averaging
from benchmarks.paper.errors import BenchmarkError

# ChronoMagic-Bench, UMT/step1_get_umtfvd.sh; its metrics fvd32_16f to fvd1024_16f and FeatureStats.
CHRONOMAGIC = Averaging(caps=(32, 64, 128, 256, 300, 512, 1024), seeds=(12, 22, 32, 42))

AVERAGINGS = {
    "chronomagic-150": CHRONOMAGIC,
    "chronomagic-1649": CHRONOMAGIC,
    "population": Averaging(),
    "unbiased": Averaging(unbiased_covariance=True),
}


def averaging_of(protocol: str) -> Averaging:
    """Raises BenchmarkError: there is no such protocol."""
    if protocol not in AVERAGINGS:
        raise BenchmarkError(f"there is no protocol '{protocol}'; --protocol is one of {', '.join(AVERAGINGS)}")
    return AVERAGINGS[protocol]
