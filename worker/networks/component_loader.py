"""Loads or checks one component of a model from its files: safetensors only; nothing is fetched and no code is run.

With `only_check`, everything happens that loading does, but the weights are read, checked and dropped: the networks
are on torch's meta device, so that checking needs the memory of one tensor.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from service.catalog.family_components import is_transformer
from service.catalog.model_entry import ModelEntry
from service.catalog.scheduler_settings import SCHEDULER_FILE
from service.catalog.weight_files import Component
from service.errors import ConfigurationError
from worker.networks.component_files import (
    DOWNLOAD_AGAIN,
    check_file,
    component_folder,
    file_names,
    read_config,
    read_json,
    refused,
)
from worker.networks.config_checks import check_config, check_numbers
from worker.networks.network_classes import Network, empty_network, errors_only, network_class
from worker.networks.stored_form import cast, dtype_of, tied_weights, without_aliases
from worker.networks.vae_config import check_vae_config, vae_dtype
from worker.networks.weight_checks import check_weights, read_weights, stored_weights
from worker.networks.weight_files import weight_files

# after network_classes, which switches the hub client offline
from transformers import CLIPImageProcessorPil, CLIPTokenizer, T5Tokenizer  # isort: skip


BUILDING = threading.Lock()  # diffusers and accelerate replace functions of torch while they build a network


def load_component(
    entry: ModelEntry, name: str, dtype: torch.dtype, device: torch.device | None = None, *, only_check: bool = False
) -> Any:
    """A tokenizer, a network (with `only_check`: without weights), or the component itself of other kinds.

    Several threads may load one component each. The weights of a network are on `device`; None: on the CPU.

    Those are schedulers, LoRAs and textual inversions: `fit_together` reads them.

    Raises:
        WeightsMismatch: the weights are not those of the configuration.
        ConfigurationError: a file is missing, cannot be read, or is not what its place in the entry needs.
    """
    component = entry.all_components[name]
    if component.is_file:
        assert component.path is not None, "check_files refuses what was not fetched"
        check_file(component.path)
        return component  # `fuse_unet_loras` and `adapt_text_encoders` need the networks
    match component.kind:
        case "tokenizer" if is_transformer(entry.family):
            return load_t5_tokenizer(component)
        case "tokenizer":
            return load_tokenizer(component)
        case "image_processor":
            return load_image_processor(component)
        case "scheduler":
            file = component_folder(component) / SCHEDULER_FILE
            check_numbers(file, read_json(file))
            return component  # `load_schedules` needs the whole entry
        case _:
            return load_network(entry, name, dtype, device, only_check=only_check)


def load_network(
    entry: ModelEntry, name: str, dtype: torch.dtype, device: torch.device | None = None, *, only_check: bool = False
) -> Network:
    """A network in `dtype`. Raises as `load_component`."""
    component = entry.all_components[name]
    folder = component_folder(component)
    file, config = folder / "config.json", read_config(folder)
    check_config(entry, name, file, config)
    on_gpu = getattr(torch, entry.dtype)
    if name == "vae":
        check_vae_config(entry)
        dtype, on_gpu = vae_dtype(entry, dtype), vae_dtype(entry, on_gpu)
    way_out = "take the one that belongs to the weights"
    kind = network_class(entry, name)
    with _building(), refused(file, way_out), torch.device("meta"):
        network = empty_network(kind, config)
    stored = without_aliases(network, stored_weights(weight_files(component).files, network.state_dict()))
    check_weights(folder, network, stored)
    if only_check:
        for _ in read_weights(stored, torch.finfo(on_gpu).max):
            pass
        return network.eval().requires_grad_(False)
    if {buffer for buffer, _ in network.named_buffers()} - set(stored):
        # what is not stored has its values from here
        with _building(), refused(file, way_out), init_empty_weights(include_buffers=False):
            network = empty_network(kind, config)
    weights = read_weights(stored, torch.finfo(on_gpu).max, device)
    named = {key: value.to(dtype_of(network, key, dtype)) for key, value in weights}
    with _building():
        network.load_state_dict(named, strict=False, assign=True)
        if tied_weights(network):
            network.tie_weights()
    cast(network, dtype)
    return network.eval().requires_grad_(False)


@contextmanager
def _building() -> Generator[None]:
    """One thread at a time, without diffusers' warnings, such as that of VideoCrafter's fps_cond."""
    with BUILDING, errors_only("diffusers"):
        yield


def load_tokenizer(component: Component) -> Any:  # transformers has no types for what from_pretrained returns
    """Raises ConfigurationError if files are missing or broken. transformers would go on with half a vocabulary."""
    folder, names = _checked_files(component)
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise ConfigurationError(
            f"{folder} lacks {'merges.txt' if 'vocab.json' in names else 'vocab.json'}: a tokenizer needs vocab.json "
            f"and merges.txt, or tokenizer.json; {DOWNLOAD_AGAIN}"
        )
    kind: Network = CLIPTokenizer
    with refused(folder, DOWNLOAD_AGAIN):
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        lost = _tokens_without_merge(tokenizer)
    if lost:
        raise ConfigurationError(
            f"{folder}: merges are missing, without which {len(lost)} tokens of the vocabulary are never used "
            f"({', '.join(lost[:3])}); {DOWNLOAD_AGAIN}"
        )
    return tokenizer


def load_t5_tokenizer(component: Component) -> Any:
    """Raises ConfigurationError if files are missing or broken."""
    folder, names = _checked_files(component)
    if "tokenizer.json" not in names:
        raise ConfigurationError(
            f"{folder} lacks tokenizer.json, which a T5 tokenizer is read from; where there is only spiece.model, take "
            "the tokenizer.json of a model with the same T5 encoder"
        )
    kind: Network = T5Tokenizer
    with refused(folder, DOWNLOAD_AGAIN):
        return kind.from_pretrained(folder, local_files_only=True)


def load_image_processor(component: Component) -> Any:
    """CLIP's. Raises ConfigurationError if its file is missing or broken."""
    folder = component_folder(component)
    read_json(folder / "preprocessor_config.json")
    kind: Network = CLIPImageProcessorPil
    with refused(folder, DOWNLOAD_AGAIN):
        return kind.from_pretrained(folder, local_files_only=True)


def _checked_files(component: Component) -> tuple[Path, list[str]]:
    """The folder of a tokenizer, and the names of its files. Raises ConfigurationError."""
    folder = component_folder(component)
    names = [name for name in file_names(folder) if component.has_file(str(Path(component.inside, name)))]
    for name in names:
        check_file(folder / name)
        if name.endswith(".json"):
            read_json(folder / name)
    return folder, names


def _tokens_without_merge(tokenizer: Any) -> list[str]:
    """Tokens of the vocabulary that are longer than one letter, and that no merge of byte-pair encoding makes."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {"".join(pair) for pair in model["merges"]} | set(tokenizer.get_added_vocab())
    return [token for token in model["vocab"] if len(token.removesuffix("</w>")) > 1 and token not in made]
