"""Which safetensors of a component's folder are its weights: one file or shards, of one variant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.catalog.weight_files import PICKLE_SUFFIXES, Component
from service.errors import ConfigurationError
from worker.networks.component_files import DOWNLOAD_AGAIN, check_file, component_folder, file_names, read_json


@dataclass(frozen=True)
class WeightFiles:
    """`variant` is that of the files' names, such as "fp16" in model.fp16.safetensors; None without."""

    files: tuple[Path, ...]
    variant: str | None


def weight_files(component: Component) -> WeightFiles:
    """The weights of the source's `variant`; if it names none, those without a variant, else the only one there is.

    Raises ConfigurationError naming what is missing, or the pickles or variants that are there instead.
    """
    folder, stem = component_folder(component), weights_stem(component)
    names = file_names(folder)
    variants = _variants(names, stem)
    wanted = component.source.variant
    if wanted is None and None not in variants and len(variants) > 1:
        raise ConfigurationError(
            f"{folder} holds the variants {', '.join(map(str, sorted(variants, key=str)))} of its weights; choose one: "
            f'variant = "{min(map(str, variants))}" in the [sources] table of its component'
        )
    if wanted is None and None not in variants and variants:
        (wanted,) = variants
    if wanted not in variants:
        raise ConfigurationError(_nothing_to_load(component, folder, names, variants))
    files = _files_of_variant(folder, names, stem, wanted)
    for file in files:
        check_file(file)
    return WeightFiles(tuple(files), wanted)


def weights_stem(component: Component) -> str:
    return "model" if component.kind in ("text_encoder", "image_encoder") else "diffusion_pytorch_model"


def _variants(names: list[str], stem: str) -> set[str | None]:
    pattern = rf"{stem}(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors|{stem}\.safetensors\.index(?:\.([\w-]+))?\.json"
    found = (re.fullmatch(pattern, name) for name in names)
    return {match[1] or match[2] for match in found if match}


def _files_of_variant(folder: Path, names: list[str], stem: str, variant: str | None) -> list[Path]:
    suffix = f".{variant}" if variant else ""
    if (single := f"{stem}{suffix}.safetensors") in names:
        return [folder / single]
    if (index := f"{stem}.safetensors.index{suffix}.json") in names:
        return _files_of_index(folder / index)
    shards = [name for name in names if re.fullmatch(rf"{stem}{re.escape(suffix)}-\d+-of-\d+\.safetensors", name)]
    count = int(shards[0].rpartition("-of-")[2].removesuffix(".safetensors"))
    if len(shards) != count:
        raise ConfigurationError(f"{folder} has {len(shards)} of {count} shards ({shards[0]} ...); {DOWNLOAD_AGAIN}")
    return [folder / name for name in shards]


def _files_of_index(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigurationError(f"{index} has no weight_map that names the shards; {DOWNLOAD_AGAIN}")
    names = sorted({str(name) for name in shards.values()})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise ConfigurationError(
                f"{index} names the shard '{name[:80]}', which is no safetensors file of this folder; {DOWNLOAD_AGAIN}"
            )
        if not (index.parent / name).exists():
            raise ConfigurationError(f"{index} names {name}, which is missing; {DOWNLOAD_AGAIN}")
    return [index.parent / name for name in names]


def _nothing_to_load(component: Component, folder: Path, names: list[str], variants: set[str | None]) -> str:
    """The sentence for a folder without the wanted weights."""
    wanted, stem = component.source.variant, weights_stem(component)
    expected = f"{stem}.{wanted}.safetensors" if wanted else f"{stem}.safetensors"
    if variants:
        there = ", ".join(f'variant = "{v}"' if v else "no variant" for v in sorted(variants, key=str))
        return f"{folder} has no {expected}; its source names variant {wanted}, the folder has {there}"
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        return (
            f"{folder} has only pickles ({', '.join(pickles[:3])}), which run code when loaded, and no {expected}; "
            "if you trust their author, convert them: load the folder with use_safetensors=False in Python and call "
            "save_pretrained, see docs/models.md"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    there = f"; it has {', '.join(others[:3])}" if others else ""
    return f"{folder} has no {expected}{there}; {DOWNLOAD_AGAIN} in the diffusers layout"
