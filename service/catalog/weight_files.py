"""Where a model's files come from, where they are stored, and their expected SHA-256. Fetches nothing.

A hub source is pinned by a commit and by the SHA-256 of its files. Where the registry has "unpinned" or "unknown",
`ivmix models fetch` records what it got in `models.lock.toml` next to the weights (trust on first use), and later
fetches and loads are checked against that.
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

from service.errors import ConfigurationError
from service.frozen_model import FrozenModel

LOCK_FILE = "models.lock.toml"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # loading a pickle runs its code

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

_TOKENIZER = r"(vocab|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|merges\.txt"
_CONFIG = r"config\.json"
_TRANSFORMERS = _CONFIG + r"|model{variant}(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index{variant}\.json"
# Regular expressions of a component's file names; `{variant}` is ".fp16" or empty.
_FILE_NAMES = {
    "tokenizer": _TOKENIZER,
    "scheduler": r"scheduler_config\.json",
    "text_encoder": _TRANSFORMERS,
    "image_encoder": _TRANSFORMERS,
    "image_processor": r"preprocessor_config\.json",
}
_NETWORK_FILE_NAMES = (
    _CONFIG
    + r"|diffusion_pytorch_model{variant}(-\d+-of-\d+)?\.safetensors"
    + r"|diffusion_pytorch_model\.safetensors\.index{variant}\.json"
)


class Source(FrozenModel):
    """A folder on this machine, or a repository on a Hugging Face hub.

    `sha256` lists the wanted files, relative to the source. "unknown" replaces a hash, or the whole list.
    """

    folder: Path | None = None
    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: Commit | Literal["unpinned"] = "unpinned"
    variant: str | None = Field(default=None, pattern=r"^\w+$", description="fp16: files named *.fp16.safetensors")
    sha256: dict[str, Sha256 | Literal["unknown"]] | Literal["unknown"] = "unknown"

    @model_validator(mode="after")
    def _check_folder_or_repo(self) -> Self:
        if (self.folder is None) == (self.repo is None):
            raise ValueError("a source needs either folder or repo")
        return self

    @property
    def lock_key(self) -> str:
        """Key of this source in the lock file."""
        return f"{self.repo}@{self.revision}"

    @property
    def pinned_sha256(self) -> dict[str, Sha256]:
        """SHA-256 by file, where the registry knows it."""
        files = {} if self.sha256 == "unknown" else self.sha256
        return {file: value for file, value in files.items() if value != "unknown"}


class LockedFile(FrozenModel):
    sha256: Sha256
    size: int


class LockedSource(FrozenModel):
    revision: Commit
    files: dict[str, LockedFile] = {}


class LockFile(FrozenModel):
    """What was fetched, by `Source.lock_key`."""

    sources: dict[str, LockedSource] = {}

    @classmethod
    def read(cls, weights_dir: Path) -> LockFile:
        """An empty one if there is no file. Raises ConfigurationError if it cannot be read."""
        file = weights_dir / LOCK_FILE
        try:
            return cls.model_validate(tomllib.loads(file.read_text()))
        except FileNotFoundError:
            return cls()
        except OSError as e:
            raise ConfigurationError(
                f"{file} cannot be read ({e.strerror}); set IVMIX_DATA_DIR or IVMIX_WEIGHTS_DIR to a readable folder"
            ) from e
        except ValueError as e:
            raise ConfigurationError(f"{file} cannot be read ({e}); delete it and fetch the models again") from e

    def write(self, weights_dir: Path) -> None:
        lines = [
            "# Written by `ivmix models fetch`. `ivmix models verify` and every worker check the files against it."
        ]
        for key, source in sorted(self.sources.items()):
            lines += ["", f"[sources.{json.dumps(key)}]", f'revision = "{source.revision}"']
            lines += ["", f"[sources.{json.dumps(key)}.files]"]
            lines += [
                f'{json.dumps(name)} = {{ sha256 = "{file.sha256}", size = {file.size} }}'
                for name, file in sorted(source.files.items())
            ]
        temporary = weights_dir / f".{LOCK_FILE}.{os.getpid()}"
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(weights_dir / LOCK_FILE)

    def with_source(self, source: Source, locked: LockedSource) -> LockFile:
        """A copy with `locked` added; files locked before at the same revision stay."""
        before = self.sources.get(source.lock_key)
        files = {**(before.files if before and before.revision == locked.revision else {}), **locked.files}
        return LockFile(sources={**self.sources, source.lock_key: locked.model_copy(update={"files": files})})


class Component(FrozenModel):
    """One component of a model: a folder in the diffusers layout or a file such as a LoRA, with its expected files."""

    name: str
    source: Source
    inside: str = Field(description="folder or file within the source; empty for the source itself")
    root: Path | None = Field(description="folder of the source on this machine; None until it is fetched")
    sha256: dict[str, Sha256] = Field(default={}, description="by file, relative to root")
    sizes: dict[str, int] = Field(default={}, description="bytes by file, relative to root")

    @classmethod
    def in_folder(cls, name: str, folder: Path) -> Self:
        """A component stored under its name in the model's folder."""
        return cls(name=name, source=Source(folder=folder), inside=name, root=folder)

    @classmethod
    def locate(cls, name: str, place: str, sources: Mapping[str, Source], weights_dir: Path, lock: LockFile) -> Self:
        """The component at `place`, "source" or "source/folder". Raises ValueError for an unknown source."""
        source_name, _, inside = place.partition("/")
        source = sources.get(source_name)
        if source is None:
            raise ValueError(
                f"{name} = '{place}': there is no source '{source_name}', only {', '.join(sources) or 'none'}"
            )
        located = cls(name=name, source=source, inside=inside, root=source.folder)
        sha256 = {file: value for file, value in source.pinned_sha256.items() if located.has_file(file)}
        locked = lock.sources.get(source.lock_key) if source.repo else None
        if source.repo is None or locked is None:
            return located.model_copy(update={"sha256": sha256})
        files = {file: value for file, value in locked.files.items() if located.has_file(file)}
        return located.model_copy(
            update={
                "root": snapshot_dir(weights_dir, source.repo, locked.revision),
                "sha256": {file: value.sha256 for file, value in files.items()} | sha256,  # the registry wins
                "sizes": {file: value.size for file, value in files.items()},
            }
        )

    @property
    def path(self) -> Path | None:
        return None if self.root is None else self.root / self.inside

    @property
    def is_available(self) -> bool:
        """Whether all files are present with the fetched sizes; `verify` reads their content."""
        if self.root is None or self.path is None or not os.path.exists(self.path):  # Path.exists raises without rights
            return False
        was_fetched = self.source.repo is None or bool(self.sizes)
        return was_fetched and all(_size(self.root / name) == size for name, size in self.sizes.items())

    def has_file(self, file: str) -> bool:
        """Whether `file`, relative to the source, belongs to this component."""
        if self.is_file:
            return file == self.inside
        folder, _, name = file.rpartition("/")
        variant = rf"\.{self.source.variant}" if self.source.variant else ""
        pattern = _FILE_NAMES.get(self.kind, _NETWORK_FILE_NAMES).replace("{variant}", variant)
        return folder == self.inside and re.fullmatch(pattern, name) is not None

    @property
    def is_file(self) -> bool:
        return self.inside.endswith(".safetensors")

    @property
    def has_weights(self) -> bool:
        return self.kind not in ("tokenizer", "scheduler", "image_processor")

    @property
    def kind(self) -> str:
        """Such as text_encoder, for image_text_encoder_2 too."""
        if self.name in ("image_encoder", "image_processor"):  # of transformers, not of an image model
            return self.name
        return self.name.removeprefix("image_").removesuffix("_2")

    def verify(self) -> None:
        """Read every file with a known SHA-256. Raises ConfigurationError naming the first that differs."""
        assert self.root is not None, "only a component on this machine can be verified"
        for name, expected in self.sha256.items():
            file = self.root / name
            found = file_sha256(file)
            if found != expected:
                raise ConfigurationError(f"{file} has sha256 {found}, expected {expected}; delete it and fetch again")


def snapshot_dir(weights_dir: Path, repo: str, revision: str) -> Path:
    return weights_dir / repo.replace("/", "--") / revision


def file_sha256(file: Path) -> str:
    """Raises ConfigurationError if the file cannot be read."""
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
