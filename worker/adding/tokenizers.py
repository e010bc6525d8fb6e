"""Finds a tokenizer for a single-file checkpoint, which has none: CLIP's, from another model of the registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import Component, Source
from worker.adding.configs import read_json

# Stable Diffusion 1 and SDXL's first text encoder pad prompts with the end token, 2 with token 0; their vocabularies
# are the same. By the width of the embeddings that the UNet reads.
PADDING = {768: "<|endoftext|>", 1024: "!", 2048: "<|endoftext|>"}
PADDING_2 = "!"  # of SDXL's second text encoder


def find_tokenizer(entries: Iterable[ModelEntry], vocabulary: int) -> Path | None:
    """The folder of a tokenizer with so many tokens on this machine."""
    return next((folder for folder in _folders(entries) if _size(folder) == vocabulary), None)


def copy_tokenizer(folder: Path, target: Path, padding: str | None) -> None:
    """Copy a tokenizer's files; `padding` replaces its padding token."""
    target.mkdir(parents=True)
    component = Component(name="tokenizer", source=Source(folder=folder), inside="", root=folder)
    for file in sorted(folder.iterdir()):
        if component.has_file(file.name):
            shutil.copyfile(file, target / file.name)
    for name in ("tokenizer_config.json", "special_tokens_map.json") if padding else ():
        if (file := target / name).exists():
            file.write_text(json.dumps({**read_json(file), "pad_token": padding}, indent=2), "utf-8")


def _folders(entries: Iterable[ModelEntry]) -> Iterator[Path]:
    for entry in entries:
        for name in ("tokenizer", "image_tokenizer"):
            component = entry.all_components.get(name)
            if component and component.is_available and component.path is not None:
                yield component.path


def _size(folder: Path) -> int | None:
    """Number of tokens."""
    if (file := folder / "vocab.json").is_file():
        return len(read_json(file))
    if not (file := folder / "tokenizer.json").is_file():
        return None
    content = read_json(file)
    added = {token["content"] for token in content.get("added_tokens", ())}
    return len(added | set(content.get("model", {}).get("vocab", ())))
