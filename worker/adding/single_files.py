"""Chooses the file of a kind from a folder or repository that is not in the diffusers layout."""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.catalog.weight_files import PICKLE_SUFFIXES
from service.errors import ConfigurationError
from worker.adding.layout import Tree
from worker.adding.weights_file import OPTIONS, WeightsFile, refuse_pickle

MAX_CANDIDATES = 50  # whose headers are read
MAX_SHOWN = 8
VARIANTS = r"fp16|bf16|fp32|fp8\w*|ema|non_ema"  # also after a dash or underscore


def single_file(tree: Tree, kind: str, variant: str | None) -> tuple[WeightsFile, str | None]:
    """The only file of this kind, and its variant.

    Args:
        variant: the wanted one; None: weights without a variant, else the only one there is.

    Raises:
        ConfigurationError: there is none, with what is there instead; or there are several, with how to name one.
    """
    names = sorted(name for name in tree.names if name.endswith(".safetensors"))
    if not names:
        raise _nothing(tree, kind)
    if len(names) > MAX_CANDIDATES:
        raise _several(tree, kind, names)
    files = {name: tree.header(name) for name in names}
    found = {name: file for name, file in files.items() if file.is_a(kind)}
    if not found:
        files[names[0]].require(kind)  # raises: it says what the file is
    return _choose(tree, kind, found, variant)


def _choose(
    tree: Tree, kind: str, files: Mapping[str, WeightsFile], wanted: str | None
) -> tuple[WeightsFile, str | None]:
    by_variant = {variant: file for name, file in files.items() for _, variant in [_split(name, wanted)]}
    if len({_split(name, wanted)[0] for name in files}) > 1:
        raise _several(tree, kind, list(files))
    if len(by_variant) == 1:
        (wanted,) = by_variant
    elif wanted not in by_variant:
        wanted = None
    if wanted not in by_variant:
        names = ", ".join(sorted(filter(None, by_variant)))
        raise ConfigurationError(f"{tree.where} has variants {names}; choose one with --variant")
    return by_variant[wanted], wanted


def _split(name: str, wanted: str | None) -> tuple[str, str | None]:
    """(name without variant, variant) of a file: model.fp16.safetensors, model-fp16.safetensors."""
    variants = f"{VARIANTS}|{re.escape(wanted)}" if wanted else VARIANTS
    found = re.fullmatch(rf"(.+?)[._-]({variants})\.safetensors", name)
    return (found[1], found[2]) if found else (name.removesuffix(".safetensors"), None)


def _several(tree: Tree, kind: str, names: list[str]) -> ConfigurationError:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ConfigurationError(
        f"{tree.where} has {len(names)} files for {OPTIONS[kind]}: {', '.join(names[:MAX_SHOWN])}{more}; name one, "
        f"such as {tree.spec}/{names[0]}"
    )


def _nothing(tree: Tree, kind: str) -> ConfigurationError:
    pickles = sorted(name for name in tree.names if name.endswith(PICKLE_SUFFIXES))
    if pickles and tree.source.folder is not None:
        refuse_pickle(tree.source.folder / pickles[0])
    if pickles:
        return ConfigurationError(
            f"{tree.where} has only pickles ({', '.join(pickles[:MAX_SHOWN])}), which can run code when they are "
            "loaded; name another revision with owner/repo@REVISION or another repository, or download one and name "
            "the file: ivmix then says how to convert it"
        )
    return ConfigurationError(
        f"{tree.where} has no {kind}: neither the diffusers layout nor a safetensors file, only "
        f"{', '.join(sorted(tree.names)[:3]) or 'no files'}"
    )
