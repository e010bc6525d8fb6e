"""What a benchmark needs besides the models: names, sizes, hashes and licences, from `weights.toml`."""

from __future__ import annotations

import tomllib
from typing import Literal

from pydantic import Field

from benchmarks.paper.facts import HERE, Fact
from service.frozen_model import FrozenModel


class Download(FrozenModel):
    """One file.

    Args:
        name: for people.
        benchmarks: that need it.
        role: what it is used for.
        network: whose weights it is, for role `weights`.
        stored_as: path in the folder of downloads.
        repo, repo_path: where it is on a Hugging Face hub; None: it must be got by hand.
        by_hand: how, in that case.
        git_blob: hash of its content as git computes it, where no sha256 is known.
    """

    name: str
    benchmarks: list[str] = Field(min_length=1)
    role: Literal["weights", "prompts", "real", "vocabulary"]
    network: str | None = None
    stored_as: str
    repo: str | None = None
    repo_path: str | None = None
    by_hand: str | None = None
    bytes: Fact[int]
    sha256: Fact[str]
    git_blob: Fact[str] | None = None
    licence: Fact[str]


def downloads(benchmark: str | None = None) -> list[Download]:
    """Those of one benchmark, or all."""
    found = tomllib.loads((HERE / "weights.toml").read_text(encoding="utf-8"))["file"]
    files = [Download.model_validate(entry) for entry in found]
    return [file for file in files if benchmark is None or benchmark in file.benchmarks]
