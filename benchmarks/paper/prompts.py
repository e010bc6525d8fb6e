"""Prompt lists: read from a file that its SHA-256 identifies, with a stable id for every prompt."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.paper.facts import HERE
from benchmarks.paper.protocols import Protocol
from service.errors import InvalidParameter

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # ids are file names
# Keys of an entry's id and text, in ours and in ChronoMagic-Bench's files.
KEYS = (("id", "prompt"), ("caption_id", "caption"))


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str


@dataclass(frozen=True)
class PromptList:
    """`sha256` is that of the whole file, also where `prompts` are the first few of it."""

    prompts: tuple[Prompt, ...]
    sha256: str
    whole: int

    @property
    def digest(self) -> str:
        """Of the prompts and ids that are used."""
        lines = "\n".join(f"{prompt.id}\t{prompt.text}" for prompt in self.prompts)
        return hashlib.sha256(lines.encode()).hexdigest()

    def first(self, count: int | None) -> PromptList:
        """Raises InvalidParameter if there are fewer."""
        if count is None:
            return self
        if not 1 <= count <= len(self.prompts):
            raise InvalidParameter("limit", f"--limit {count}: the list has {len(self.prompts)} prompts, so 1 to that.")
        return PromptList(self.prompts[:count], self.sha256, self.whole)


def prompts_of(protocol: Protocol, folder: Path, given: Path | None) -> PromptList:
    """The prompts that `given` lists, or those of the benchmark, from this package or the folder of downloads.

    Raises InvalidParameter if there is no such file, or if it is another list, which only `given` may choose.
    """
    if given is not None:
        return read_prompts(given)
    name, sha256 = protocol.prompts.value, protocol.prompts_sha256.value
    if name is None:
        raise InvalidParameter(
            "prompts", f"The prompts of {protocol.name} are not known ({protocol.prompts.source}); give --prompts FILE."
        )
    places = [HERE / "prompts" / name, folder / name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InvalidParameter(
            "prompts", f"{places[-1]} is missing: `ivmix bench fetch {protocol.name}` says where to get it."
        )
    found = read_prompts(file)
    if sha256 is not None and found.sha256 != sha256:
        raise InvalidParameter(
            "prompts",
            f"{file} has sha256 {found.sha256}, {protocol.name} has {sha256}; fetch it again, or choose it with "
            "--prompts, which leaves out the published numbers.",
        )
    return found


def read_prompts(file: Path) -> PromptList:
    """A JSON list of texts or of objects with id and text, or a text file with a prompt per line.

    Raises InvalidParameter naming the entry that cannot be used.
    """
    try:
        data = file.read_bytes()
        entries = json.loads(data) if file.suffix == ".json" else _lines(data.decode())
    except OSError as e:
        raise InvalidParameter("prompts", f"{file} cannot be read: {e.strerror}.") from e
    except ValueError as e:
        raise InvalidParameter("prompts", f"{file} is neither JSON nor UTF-8 text: {e}.") from e
    if not isinstance(entries, list) or not entries:
        raise InvalidParameter("prompts", f"{file} must be a list of at least one prompt.")
    found = tuple(_prompt(file, i, entry) for i, entry in enumerate(cast("list[Any]", entries)))
    twice = [prompt_id for prompt_id, count in Counter(prompt.id for prompt in found).items() if count > 1]
    if twice:
        raise InvalidParameter("prompts", f"{file} has the id '{twice[0]}' twice; every prompt needs its own.")
    return PromptList(found, hashlib.sha256(data).hexdigest(), len(found))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _prompt(file: Path, index: int, entry: Any) -> Prompt:
    if isinstance(entry, str) and entry.strip():
        return Prompt(f"{index:04}", entry)
    if isinstance(entry, Mapping):
        fields = cast("Mapping[str, Any]", entry)
        for id_key, text_key in KEYS:
            prompt_id, text = fields.get(id_key), fields.get(text_key)
            if isinstance(prompt_id, str) and SAFE_ID.fullmatch(prompt_id) and isinstance(text, str) and text.strip():
                return Prompt(prompt_id, text)
    raise InvalidParameter(
        "prompts",
        f"{file}, entry {index}: it must be a text, or an object with id (letters, digits, '_', '-', '.') and prompt.",
    )
