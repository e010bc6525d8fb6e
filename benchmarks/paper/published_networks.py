"""UMT and I3D with their published weights as feature networks of a benchmark, and features of its real clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.paper.clips import Frames
from benchmarks.paper.downloads import Download, downloads
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.feature_files import read_features
from benchmarks.paper.features import UmtScorer, open_network
from benchmarks.paper.networks import Array, ClipFeatures, Columns, RealSet
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.protocols import Protocol
from service.catalog.weight_files import file_sha256

# Benchmark: file of real features that the floor may draw from.
OTHER_REAL = {"chronomagic-150": "gt1649_feats.pt"}


class PublishedNetwork:
    """Raises BenchmarkError if a file is missing; networks are loaded and hashes checked for the first clip.

    Args:
        data: folder of downloads.
        device: on which the network runs.
        files: what may be in the folder; None: the benchmark's downloads.
    """

    def __init__(self, protocol: Protocol, data: Path, device: str, files: Sequence[Download] | None = None) -> None:
        if protocol.network.value is None:
            raise BenchmarkError(f"the feature network of {protocol.name} is not known: {protocol.network.source}")
        self.name: str = protocol.network.value
        self._protocol, self._data, self._device = protocol, data, device
        self._files = downloads(protocol.name) if files is None else files
        self._weights = self._found(lambda file: file.network == self.name, f"weights of '{self.name}'")
        self._scores_texts = protocol.score.value == "UMTScore"
        self._vocabulary = (
            self._found(lambda file: file.role == "vocabulary", "vocab.txt") if self._scores_texts else None
        )

    @property
    def columns(self) -> Columns:
        if self._scores_texts:
            return Columns(spaces={"umt": "UMT-FVD"}, scores={"umtscore": "UMTScore"})
        return Columns(spaces={"i3d": "FVD"}, scores={})

    @cached_property
    def digest(self) -> str:
        """Raises BenchmarkError if the weights are not those that were published."""
        found = file_sha256(self._weights)
        known = next(file.sha256.value for file in self._files if self._data / file.stored_as == self._weights)
        if known not in (None, found):
            raise BenchmarkError(f"{self._weights} has sha256 {found}, expected {known}; delete it and get it again")
        return f"{found[:16]} {self.name} on {torch.device(self._device).type}"

    @cached_property
    def _features(self) -> Callable[[Frames], np.ndarray]:
        return open_network(self.name, self._weights, self._device)

    @cached_property
    def _scorer(self) -> UmtScorer:
        assert self._vocabulary is not None
        return UmtScorer(self._weights, self._vocabulary, self._device)

    def of_clip(self, frames: Frames, prompt: str) -> ClipFeatures:
        """Features (1, d) in one space; with UMT the score of clip and prompt."""
        scores: dict[str, float] = {}
        if self._scores_texts:
            vector, scores["umtscore"] = self._scorer.both(frames, prompt)  # one pass, and the weights once in memory
        else:
            vector = self._features(frames)
        return ClipFeatures({self.columns.space: vector[None].astype(np.float64)}, scores)

    def real(self, prompts: Sequence[Prompt]) -> RealSet:
        """The benchmark's real clips: one for each prompt where they are in the order of the prompts, else all."""
        name = self._protocol.real.value
        rows = real_rows(self._data, name or "", self._protocol.name)
        reference = rows[: len(prompts)] if self._protocol.parts.value == "mean" else rows
        other = OTHER_REAL.get(self._protocol.name)
        others = real_rows(self._data, other, self._protocol.name) if other else None
        spaces = {self.columns.space: reference[:, None]}
        return RealSet(spaces, None if others is None else {self.columns.space: others[:, None]}, f"{name}")

    def _found(self, wanted: Callable[[Download], bool], what: str) -> Path:
        file = next((file for file in self._files if wanted(file)), None)
        if file is None:
            raise BenchmarkError(f"there are no {what} that ivmix can load; see docs/benchmarks.md")
        path = self._data / file.stored_as
        if not path.is_file():
            raise BenchmarkError(f"{path} is missing; `ivmix bench fetch {self._protocol.name}` gets it or says where")
        return path


def real_rows(data: Path, name: str, benchmark: str) -> Array:
    """Features (n, d) of real clips, from an .npy file or a tensor that PyTorch saved. Raises BenchmarkError."""
    file = data / name
    if not file.is_file():
        raise BenchmarkError(f"{file} is missing; `ivmix bench fetch {benchmark}` gets it or says where")
    if file.suffix == ".npy":
        return read_features(file)
    found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise BenchmarkError(f"{file} has no tensor (n, d); fetch it again")
    return found.double().numpy()
