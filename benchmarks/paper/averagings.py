"""Which subsets of the rows each protocol averages a Frechet distance over."""

from __future__ import annotations

from benchmarks.paper.distances import Averaging
from benchmarks.paper.protocols import Protocol


def averaging_of(protocol: Protocol) -> Averaging:
    return Averaging(
        caps=tuple(protocol.caps.value or ()),
        seeds=tuple(protocol.seeds.value or (0,)),
        unbiased_covariance=protocol.covariance.value == "sample",
    )
