"""Broken and odd model folders: each is a change of a tiny good AnimateDiff folder, and what must be said of it.

`ivmix models verify` and loading must agree on every one. `mutate` makes random further ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from tests.tiny_models import save_model, write_entry

Weights = dict[str, Tensor]
UNET, TEXT = "diffusion_pytorch_model", "model"  # stems of the names of weight files


class Broken(NamedTuple):
    """`says`: parts of the error; empty if the folder is odd, but loads. `entry`: changed fields of the entry."""

    change: Callable[[Path], object]
    says: tuple[str, ...] = ()
    entry: dict[str, Any] = {}
    lines: tuple[str, ...] = ()
    family: str = "animatediff"


def good_model(folder: Path) -> ModelEntry:
    """The folder that all are changes of: one UNet, with the motion adapter, and one text encoder."""
    save_model("animatediff", folder)
    for name in ("image_unet", "image_tokenizer", "image_text_encoder", "image_scheduler"):
        shutil.rmtree(folder / name)
    return write_entry(folder, "animatediff")


def broken_model(good: Path, folder: Path, case: Broken) -> ModelEntry:
    shutil.copytree(good, folder)
    case.change(folder)
    return write_entry(folder, case.family, *case.lines).model_copy(update=case.entry)


# -- changes ---------------------------------------------------------------------------------------------------------


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def delete(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def config(component: str, file: str = "config.json", **changes: Any) -> Callable[[Path], object]:
    """Change fields of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / component / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def weights(component: str, change: Callable[[Weights], Weights | None], stem: str = UNET) -> Callable[[Path], object]:
    """Change the weights of a component: in place, or to what `change` returns."""

    def apply(folder: Path) -> None:
        file = folder / component / f"{stem}.safetensors"
        tensors = load_file(file)
        save_file(change(tensors) or tensors, file, {"format": "pt"})

    return apply


def one_value(key: str, value: float) -> Callable[[Weights], None]:
    return lambda tensors: tensors[key].view(-1)[-1:].fill_(value) and None


def cast_all(dtype: torch.dtype) -> Callable[[Weights], Weights]:
    return lambda tensors: {key: value.to(dtype) for key, value in tensors.items()}


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, size)


def as_file(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / name)
        (folder / name).write_text("a file")

    return change


def as_folder(name: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def broken_link(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(folder / "nowhere")

    return change


def rename(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


def shards(
    index: Callable[[dict[str, str]], object] | None = None, delete: int | None = None, twice: bool = False
) -> Callable[[Path], object]:
    """Split the UNet's weights into two shards; `index` changes the weight_map."""

    def change(folder: Path) -> None:
        file = folder / "unet" / f"{UNET}.safetensors"
        tensors = load_file(file)
        file.unlink()
        names, keys = [f"{UNET}-0000{n}-of-00002.safetensors" for n in (1, 2)], list(tensors)
        parts = [keys[: 1 if not twice else 2], keys[1:]]
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        for name, part in zip(names, parts, strict=True):
            save_file({key: tensors[key] for key in part}, file.parent / name)
        if delete:
            (file.parent / names[delete - 1]).unlink()
        if index:
            index(where)
            (file.parent / f"{UNET}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    return change


def variants(*names: str, plain: bool = False) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "unet" / f"{UNET}.safetensors"
        for name in names:
            shutil.copy(file, file.with_name(f"{UNET}.{name}.safetensors"))
        if not plain:
            file.unlink()

    return change


def several(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder) for change in changes]


def longer_header(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the JSON header of a safetensors file, whatever its data then mean."""

    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        change(header)
        text = json.dumps(header).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return apply


def vocabulary_files(*, without: str = "", merges_kept: int | None = None) -> Callable[[Path], object]:
    """The tokenizer as older repositories have it: vocab.json and merges.txt."""

    def change(folder: Path) -> None:
        file = folder / "tokenizer" / "tokenizer.json"
        model = json.loads(file.read_text())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]][:merges_kept]
        files = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(["#version: 0.2", *merges])}
        for name, text in files.items():
            if name != without:
                (file.parent / name).write_text(text)
        file.unlink()

    return change


def mutate(folder: Path, rng: random.Random) -> str:
    """Change one file at random; returns what was done."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "models.toml")
    file = rng.choice(files)
    ways = [_flip, _truncate, _delete, _other_value, _other_key] if file.suffix == ".json" else [_flip, _truncate]
    return f"{file.relative_to(folder)}: {rng.choice(ways)(file, rng)}"


def _flip(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
    for place in (places := [rng.randrange(min(header, len(data))) for _ in range(rng.randint(1, 3))]):
        data[place] = rng.choice([rng.randrange(256), data[place] ^ (1 << rng.randrange(8)), ord("9")])
    file.write_bytes(data)
    return f"bytes {places} changed"


def _truncate(file: Path, rng: random.Random) -> str:
    size = rng.choice([0, 7, 8, rng.randrange(file.stat().st_size), file.stat().st_size - 1])
    os.truncate(file, size)
    return f"cut to {size} bytes"


def _delete(file: Path, _rng: random.Random) -> str:
    file.unlink()
    return "deleted"


def _other_value(file: Path, rng: random.Random) -> str:
    table = json.loads(file.read_text())
    key = rng.choice(list(table))
    odd: list[Any] = [None, True, -1, 0, 3, 1e30, 10**12, "", "x", [], [1, 2], ["x"], {}, {"a": None}]
    table[key] = rng.choice(odd)
    file.write_text(json.dumps(table))
    return f"{key}={table[key]!r}"


def _other_key(file: Path, rng: random.Random) -> str:
    table = json.loads(file.read_text())
    key = rng.choice(list(table))
    value = table.pop(key)
    if rng.random() < 0.5:
        table[f"{key}_"] = value
    file.write_text(json.dumps(table))
    return f"without {key}"
