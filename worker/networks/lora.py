"""Applies the LoRAs and textual inversions of an entry: everything in a file, or the file is refused by name.

A LoRA may be on one of two networks that share their weights, so that merged weights are new parameters and what no
LoRA changes stays shared.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from service.catalog.adapters import Role
from service.catalog.family_components import SDXL
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.lora_file import LoraFile
from worker.networks.lora_layers import Adapter
from worker.networks.lora_names import TEXT_TARGETS, Target
from worker.networks.network_classes import Network
from worker.networks.stored_layers import StoredLayers
from worker.networks.text_encoder import AnyTextEncoder, text_encoder_of
from worker.networks.textual_inversion import SDXL_KEYS, add_inversions


def fuse_unet_loras(entry: ModelEntry, image: Network, video: Network) -> None:
    """Merge the LoRAs of an entry into its UNets; those on torch's meta device are only checked.

    Raises:
        ConfigurationError: a file is no LoRA, is of an unknown kind, does not fit, or overflows the entry's `dtype`.
    """
    _fuse(entry, "unet", {"image": image, "video": video}, _files(entry))


def adapt_text_encoders(
    entry: ModelEntry, image: AnyTextEncoder, video: AnyTextEncoder
) -> tuple[AnyTextEncoder, AnyTextEncoder]:
    """(image's, video's) with the LoRAs and textual inversions of an entry; one object only if both get the same.

    Those on torch's meta device are only checked.

    Raises:
        ConfigurationError: a file is not one, is of an unknown kind, does not fit, or overflows the entry's `dtype`.
    """
    loras = _files(entry)
    on = [lora.on for lora in loras if any(layer.target != "unet" for layer in lora.layers)]
    on += [inversion.on for inversion in entry.textual_inversions]
    if image is video and any(len(set(roles)) == 1 for roles in on):
        image = video.copied()
    encoders: dict[Role, AnyTextEncoder] = {"video": video} if image is video else {"image": image, "video": video}
    for target in TEXT_TARGETS[: len(video.parts)]:
        _fuse(entry, target, {role: text.parts[target].layers for role, text in encoders.items()}, loras)
    keys = SDXL_KEYS if entry.family == SDXL else {}
    for role, text in encoders.items():
        if inversions := [inversion for inversion in entry.textual_inversions if role in inversion.on]:
            parts = {
                name: add_inversions(part, inversions, role, _dtype(entry), keys.get(name))
                for name, part in text.parts.items()
            }
            encoders[role] = text_encoder_of(parts)
    return encoders.get("image", encoders["video"]), encoders["video"]


def _files(entry: ModelEntry) -> list[LoraFile]:
    files = [LoraFile(lora) for lora in entry.all_loras]
    for file in files:
        check_text_encoders(entry, file)
    return files


def check_text_encoders(entry: ModelEntry, file: LoraFile) -> None:
    """Raises ConfigurationError if the file is for a text encoder that the family lacks."""
    second = [layer for layer in file.layers if layer.target == "text_encoder_2"]
    if second and entry.family != SDXL:
        raise ConfigurationError(
            f"LoRA {file.path}: it has weights of SDXL's second text encoder, which family {entry.family} lacks: "
            f"{min(second[0].keys.values())}"
        )


def _fuse(entry: ModelEntry, target: Target, networks: Mapping[Role, Network], loras: Sequence[LoraFile]) -> None:
    """Check all files, then merge. A parameter that two networks share and that gets the same LoRAs stays shared."""
    plans = {role: _by_module(loras, target, role, network) for role, network in networks.items()}
    merged: dict[tuple[int, tuple[int, ...]], dict[str, nn.Parameter]] = {}
    replaced: list[nn.Parameter] = []  # kept, so that no other parameter gets an id of `merged`
    for role, network in networks.items():
        files = StoredLayers(entry, target, role)
        for name, adapters in plans[role].items():
            module = network.get_submodule(name)
            key = (id(module.weight), tuple(adapters))
            if key not in merged:
                replaced.append(module.weight)
                by_file = {loras[number]: adapter for number, adapter in adapters.items()}
                merged[key] = checked_sum(module, name, by_file, files, _dtype(entry))
            for parameter, value in merged[key].items():
                setattr(module, parameter, value)


def checked_sum(
    module: nn.Module, name: str, adapters: Mapping[LoraFile, Adapter], files: StoredLayers, dtype: torch.dtype
) -> dict[str, nn.Parameter]:
    """The merged parameters; none of a module on the meta device.

    The sum must fit the precision of a GPU, `dtype`, on every device: a model is refused everywhere or nowhere.
    """
    if module.weight.is_meta:
        _merged(files.read(name, module, dtype), adapters)
        return {}
    if module.weight.dtype is not dtype:
        _merged(copy.deepcopy(module).to(dtype), adapters)
    return _merged(module, adapters)


def _by_module(
    loras: Sequence[LoraFile], target: Target, role: Role, network: Network
) -> dict[str, dict[int, Adapter]]:
    """Adapters by the name of the module and the number of the LoRA."""
    found: dict[str, dict[int, Adapter]] = {}
    for number, lora in enumerate(loras):
        for name, adapter in lora.adapters(target, role, network).items():
            found.setdefault(name, {})[number] = adapter
    return found


def _merged(module: nn.Module, adapters: Mapping[LoraFile, Adapter]) -> dict[str, nn.Parameter]:
    """Weight and bias with all adapters. Each is computed without the others, so that their order is free."""
    before = dict(module.named_parameters())
    after = {name: value.float().clone() for name, value in before.items()}
    for lora, adapter in adapters.items():
        try:
            for name, value in adapter.merged(module).items():
                after[name] += value - before[name].float()
        except ValueError as e:
            raise ConfigurationError(f"LoRA {lora.path}: {min(adapter.layer.keys.values())}: {e}") from e
    merged = {name: value.to(before[name].dtype) for name, value in after.items()}
    if not all(torch.isfinite(value).all() for value in merged.values()):
        keys = ", ".join(f"LoRA {lora.path}: {min(adapter.layer.keys.values())}" for lora, adapter in adapters.items())
        dtype = str(next(iter(before.values())).dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"{keys}: the sum overflows the weights of the layer in {dtype}; lower the scale"
            + ("" if dtype == "float32" else ', or set dtype = "bfloat16" or "float32" in the model\'s entry')
        )
    return {
        name: before[name] if torch.equal(value, before[name]) else nn.Parameter(value, requires_grad=False)
        for name, value in merged.items()
    }


def _dtype(entry: ModelEntry) -> torch.dtype:
    return getattr(torch, entry.dtype)
