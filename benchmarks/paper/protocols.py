"""How each benchmark is run and scored. The values and their sources are in `protocols.toml`."""

from __future__ import annotations

import hashlib
import tomllib
from functools import cache
from typing import Any, Literal

from pydantic import Field

from benchmarks.paper.facts import HERE, Fact
from service.errors import InvalidParameter
from service.frozen_model import FrozenModel

FILE = HERE / "protocols.toml"


class Protocol(FrozenModel):
    """One benchmark. Fields that are `unknown` must be given on the command line, or the run is refused."""

    name: str
    title: str
    model: str | None = Field(default=None, description="model that runs it by default")
    prompts: Fact[str]
    prompts_sha256: Fact[str]
    n: Fact[int]
    clips: Fact[int]
    size: Fact[str]
    num_frames: Fact[int]
    fps: Fact[int]
    steps: Fact[int]
    network: Fact[Literal["umt", "i3d-crop", "i3d-squash", "i3d-stylegan-v", "judges"]]
    sampled_frames: Fact[str]
    preprocessing: Fact[str]
    covariance: Fact[Literal["population", "sample"]]
    caps: Fact[list[int]]
    seeds: Fact[list[int]]
    parts: Fact[Literal["mean", "pooled"]]
    real: Fact[str]
    score: Fact[str]

    @property
    def digest(self) -> str:
        """Changes when a value changes, and not when a source is worded better."""
        values = {name: fact.value for name, fact in self.facts.items()}
        return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]

    @property
    def facts(self) -> dict[str, Fact[Any]]:
        return {name: value for name, value in self if isinstance(value, Fact)}


@cache
def protocols() -> dict[str, Protocol]:
    found = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Protocol.model_validate({"name": name, **fields}) for name, fields in found.items()}


def protocol(name: str) -> Protocol:
    """Raises InvalidParameter."""
    if name not in protocols():
        raise InvalidParameter("name", f"There is no benchmark '{name}'; there are {', '.join(protocols())}.")
    return protocols()[name]
