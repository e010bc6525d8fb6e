"""Where a model's files come from, where they are on this machine, and what they must be. Nothing is fetched here.

A hub source is pinned by a commit and by the sha256 of its files. Where the registry does not know them it says so
("unpinned", "unknown"); `ivmix models fetch` then writes what it got into `models.lock.toml` beside the weights, and
from then on that is what the files must be: trust on first use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.base import FrozenModel
from service.errors import ConfigurationError

LOCK = "models.lock.toml"
UNSAFE = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # pickles: loading one runs its code

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

_TOKENIZER = r"(vocab|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|merges\.txt"
_CONFIG = r"config\.json"
# Which files a component consists of; `{variant}` is ".fp16" or nothing.
_FILES = {
    "tokenizer": _TOKENIZER,
    "scheduler": r"scheduler_config\.json",
    "text_encoder": _CONFIG + r"|model{variant}(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index{variant}\.json",
}
_NETWORK = (
    _CONFIG
    + r"|diffusion_pytorch_model{variant}(-\d+-of-\d+)?\.safetensors"
    + r"|diffusion_pytorch_model\.safetensors\.index{variant}\.json"
)


class Source(FrozenModel):
    """A folder on this machine, or a repository of a Hugging Face hub.

    `sha256` lists the files that are wanted, relative to the source; "unknown" stands for one, or for all of them.
    """

    folder: Path | None = None
    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: Commit | Literal["unpinned"] = "unpinned"
    variant: str | None = Field(default=None, pattern=r"^\w+$", description="fp16: files named *.fp16.safetensors")
    sha256: dict[str, Sha256 | Literal["unknown"]] | Literal["unknown"] = "unknown"

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.folder is None) == (self.repo is None):
            raise ValueError("a source has either folder or repo")
        return self

    @property
    def key(self) -> str:
        """What the lock file calls it."""
        return f"{self.repo}@{self.revision}"

    @property
    def pinned(self) -> dict[str, Sha256]:
        """The files whose content is known."""
        files = {} if self.sha256 == "unknown" else self.sha256
        return {file: value for file, value in files.items() if value != "unknown"}


class LockedFile(FrozenModel):
    sha256: Sha256
    size: int


class LockedSource(FrozenModel):
    revision: Commit
    files: dict[str, LockedFile] = {}


class Lock(FrozenModel):
    """What was fetched, by the source's key."""

    sources: dict[str, LockedSource] = {}

    @classmethod
    def read(cls, weights_dir: Path) -> Lock:
        """Empty where there is none. Raises ConfigurationError if it cannot be read."""
        file = weights_dir / LOCK
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"{file} cannot be read ({e}); delete it and fetch the models again") from e

    def write(self, weights_dir: Path) -> None:
        lines = [
            "# What `ivmix models fetch` got. The files must stay so; `ivmix models verify` and every worker check."
        ]
        for key, source in sorted(self.sources.items()):
            lines += ["", f"[sources.{json.dumps(key)}]", f'revision = "{source.revision}"']
            lines += ["", f"[sources.{json.dumps(key)}.files]"]
            lines += [
                f'{json.dumps(name)} = {{ sha256 = "{file.sha256}", size = {file.size} }}'
                for name, file in sorted(source.files.items())
            ]
        fresh = weights_dir / f".{LOCK}.{os.getpid()}"
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(weights_dir / LOCK)

    def with_source(self, source: Source, locked: LockedSource) -> Lock:
        before = self.sources.get(source.key)
        files = {**(before.files if before and before.revision == locked.revision else {}), **locked.files}
        return Lock(sources={**self.sources, source.key: locked.model_copy(update={"files": files})})


class Component(FrozenModel):
    """One part of a model: a folder in the diffusers layout, or one file (a LoRA), and what its files must be.

    `path` is None while it has not been fetched. `sha256` and `sizes` name files relative to the source, `root`.
    """

    name: str
    source: Source
    inside: str = Field(description="folder or file inside the source; empty for the source itself")
    root: Path | None
    sha256: dict[str, Sha256] = {}
    sizes: dict[str, int] = {}

    @property
    def path(self) -> Path | None:
        return None if self.root is None else self.root / self.inside

    @property
    def is_here(self) -> bool:
        """All there, by name and size; `check` reads the files."""
        if self.root is None or self.path is None or not self.path.exists():
            return False
        was_fetched = self.source.repo is None or bool(self.sizes)
        return was_fetched and all(_size(self.root / name) == size for name, size in self.sizes.items())

    def has(self, file: str) -> bool:
        """Whether a file, named relative to the source, is one of this component's."""
        if self.is_file:
            return file == self.inside
        folder, _, name = file.rpartition("/")
        return folder == self.inside and re.fullmatch(self._pattern, name) is not None

    @property
    def is_file(self) -> bool:
        return self.inside.endswith(".safetensors")

    @property
    def has_weights(self) -> bool:
        return self.kind not in ("tokenizer", "scheduler")

    @property
    def kind(self) -> str:
        return self.name.removeprefix("image_")

    @property
    def _pattern(self) -> str:
        variant = rf"\.{self.source.variant}" if self.source.variant else ""
        return _FILES.get(self.kind, _NETWORK).replace("{variant}", variant)

    def check(self) -> None:
        """Read every file whose sha256 is known. Raises ConfigurationError naming the first that is another."""
        assert self.root is not None, "only what is here can be checked"
        for name, expected in self.sha256.items():
            found = digest(self.root / name)
            if found != expected:
                raise ConfigurationError(
                    f"{self.root / name} has sha256 {found}, must have {expected}; delete it and fetch the model again"
                )


def locate(name: str, place: str, sources: Mapping[str, Source], weights_dir: Path, lock: Lock) -> Component:
    """The component `name` at `place`, "source" or "source/folder". Raises ValueError for an unknown source."""
    source_name, _, inside = place.partition("/")
    source = sources.get(source_name)
    if source is None:
        raise ValueError(f"{name} = '{place}' names no source; there are {', '.join(sources) or 'none'}")
    bare = Component(name=name, source=source, inside=inside, root=source.folder)
    sha256 = {file: value for file, value in source.pinned.items() if bare.has(file)}
    if source.repo is None:
        return bare.model_copy(update={"sha256": sha256})
    locked = lock.sources.get(source.key)
    if locked is None:
        return bare.model_copy(update={"sha256": sha256})
    files = {file: value for file, value in locked.files.items() if bare.has(file)}
    return bare.model_copy(
        update={
            "root": hub_folder(weights_dir, source.repo, locked.revision),
            "sha256": {file: value.sha256 for file, value in files.items()} | sha256,  # the registry has the last word
            "sizes": {file: value.size for file, value in files.items()},
        }
    )


def in_folder(name: str, folder: Path) -> Component:
    """A component of a model that lies in one folder, under its own name."""
    return Component(name=name, source=Source(folder=folder), inside=name, root=folder)


def hub_folder(weights_dir: Path, repo: str, revision: str) -> Path:
    return weights_dir / repo.replace("/", "--") / revision


def digest(file: Path) -> str:
    """Its sha256. Raises ConfigurationError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise ConfigurationError(f"{file} cannot be read: {e.strerror}") from e


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
