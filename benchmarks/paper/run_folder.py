"""The folder of one run: what it is, its arms, its clips with a manifest each, and their features.

    run.json                        what must be equal for clips to be comparable
    arms/ARM.json                   the request fields of an arm
    clips/ARM/PROMPT.REPEAT.mp4     the clip; .mkv next to it is the lossless copy; .json, written last, its manifest
    features/NETWORK/ARM/PROMPT.REPEAT.npz

Every file is written whole or not at all, and its content does not depend on the shard that wrote it. So the folders of
several machines are joined by copying them over each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape as glob_escape
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from benchmarks.paper.arms import Arm
from service.catalog.weight_files import file_sha256
from service.errors import ConfigurationError
from service.frozen_model import FrozenModel

SEED_BYTES = 6  # a JavaScript client can send the number back without rounding it


def seed_of(benchmark: str, prompt_id: str, repeat: int) -> int:
    """Seed of a clip's noise: the same in every arm, shard and restart."""
    key = f"{benchmark}\n{prompt_id}\n{repeat}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:SEED_BYTES], "big")


class Run(FrozenModel):
    """What all clips of a folder share.

    Args:
        benchmark, protocol: its name, and the digest of its protocol.
        model, weights: id, and a digest of the weights; None if a server made the clips, which does not report it.
        prompts, prompts_file, n: digest of the prompts used, SHA-256 of the file they are from, and how many they are.
        request: fields that all arms share.
        cut_prompts: whether prompts that are too long for the model were cut.
        batch: clips that were sampled together: it changes how floating-point numbers are rounded.
    """

    benchmark: str
    protocol: str
    model: str
    weights: str | None
    prompts: str
    prompts_file: str
    n: int
    request: dict[str, Any]
    cut_prompts: bool
    batch: int


class ClipManifest(FrozenModel):
    """What one clip is, and what made it.

    Args:
        seconds, cpu_seconds: of inference, by the clock and of the process; of a batch, its share.
        made_by: commit or version of the code, or the server's address.
        files: SHA-256 by suffix, `mp4` and, with a lossless copy, `mkv`.
    """

    benchmark: str
    arm: str
    plan: str
    prompt_id: str
    prompt: str
    repeat: int
    seed: int
    made_by: str
    device: str
    seconds: float
    cpu_seconds: float | None = None
    files: dict[str, str]


@dataclass(frozen=True)
class ClipKey:
    """Which clip: `repeat` counts the clips of a prompt from 0."""

    arm: str
    prompt_id: str
    repeat: int

    @property
    def stem(self) -> str:
        return f"{self.prompt_id}.{self.repeat}"


class RunFolder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def clip(self, key: ClipKey, suffix: str) -> Path:
        return self.root / "clips" / key.arm / f"{key.stem}.{suffix}"

    def features(self, network: str, key: ClipKey) -> Path:
        return self.root / "features" / network / key.arm / f"{key.stem}.npz"

    def is_done(self, key: ClipKey, suffixes: frozenset[str]) -> bool:
        """Whether the clip is there with these files; the manifest is written last."""
        manifest = self.manifest(key)
        return manifest is not None and suffixes <= set(manifest.files)

    def manifest(self, key: ClipKey) -> ClipManifest | None:
        """None if the clip is missing. Raises ConfigurationError for a damaged manifest."""
        file = self.clip(key, "json")
        found = _read(file)
        if found is None:
            return None
        try:
            manifest = ClipManifest.model_validate(found)
        except ValidationError as e:
            raise ConfigurationError(f"{file} is no manifest of this version; delete it to make the clip again") from e
        missing = [suffix for suffix in manifest.files if not self.clip(key, suffix).is_file()]
        return None if missing else manifest

    def check_clip(self, key: ClipKey, manifest: ClipManifest, suffix: str) -> Path:
        """The clip's file, if it is the one that was made. Raises ConfigurationError."""
        file = self.clip(key, suffix)
        if (found := file_sha256(file)) != manifest.files[suffix]:
            raise ConfigurationError(
                f"{file} has sha256 {found}, its manifest {manifest.files[suffix]}; delete both to make the clip again"
            )
        return file

    def write(self, file: Path, data: bytes) -> None:
        """Whole or not at all, on the disk before it has its name. What a process that was killed left is removed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            part.replace(file)
        except FileNotFoundError:
            if not file.is_file():  # else another process wrote the same, and took this for a leftover
                raise
        for leftover in file.parent.glob(f".{glob_escape(file.name)}.*.part"):
            leftover.unlink(missing_ok=True)

    def write_json(self, file: Path, value: Mapping[str, Any]) -> None:
        self.write(file, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def open_run(self, run: Run) -> None:
        """Record what this folder is, or compare with what it is already. Raises ConfigurationError."""
        self._same(self.root / "run.json", run.model_dump(mode="json"), "its clips are not comparable with this run")

    def open_arm(self, arm: Arm) -> None:
        """Raises ConfigurationError if the folder has another arm of this name."""
        value = arm.model_dump(mode="json")
        self._same(self.root / "arms" / f"{arm.name}.json", value, f"it has another arm '{arm.name}'")

    def _same(self, file: Path, value: dict[str, Any], problem: str) -> None:
        found = _read(file)
        if found is None:
            self.write_json(file, value)
            return
        value = json.loads(json.dumps(value))
        if differing := sorted(name for name in {*found, *value} if found.get(name) != value.get(name)):
            name = differing[0]
            raise ConfigurationError(
                f"{file}: {problem}: {name} is {found.get(name)!r} there and {value.get(name)!r} here; "
                "give another --out, or the settings of that run"
            )

    @property
    def run(self) -> Run:
        """Raises ConfigurationError."""
        found = _read(self.root / "run.json")
        if found is None:
            raise ConfigurationError(f"{self.root} is no folder of a benchmark: it has no run.json")
        try:
            return Run.model_validate(found)
        except ValidationError as e:
            raise ConfigurationError(f"{self.root / 'run.json'} is not of this version: {e}") from e

    @property
    def arms(self) -> dict[str, Arm]:
        """Of all shards, by name; those that IV-mixed is compared with in their usual order."""
        files = sorted((self.root / "arms").glob("*.json"))
        found = [Arm.model_validate(_read(file)) for file in files if not file.name.startswith(".")]
        return {arm.name: arm for arm in found}

    @contextmanager
    def shard_lock(self, shard: int, count: int) -> Generator[None]:
        """Raises ConfigurationError if another process makes this shard."""
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.root / f".shard-{shard}-of-{count}.lock"
        with file.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise ConfigurationError(
                    f"Another process makes shard {shard}/{count} in {self.root}; wait for it, or choose another shard"
                ) from e
            yield


def _read(file: Path) -> dict[str, Any] | None:
    """None if there is no such file. Raises ConfigurationError."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ConfigurationError(f"{file} is damaged ({e}); delete it") from e
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} is no JSON object; delete it")
    return cast("dict[str, Any]", found)
