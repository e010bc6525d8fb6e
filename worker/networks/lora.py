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
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.component_files import component_folder, read_config
from worker.networks.lora_file import LoraFile
from worker.networks.lora_layers import Adapter
from worker.networks.lora_names import Target
from worker.networks.network_classes import Network, empty_network, errors_only, network_class
from worker.networks.text_encoder import TextEncoder
from worker.networks.textual_inversion import add_inversions

# after network_classes, which switches the hub client offline
from diffusers import UNetMotionModel  # isort: skip
from transformers import CLIPTokenizer  # isort: skip


def fuse_unet_loras(entry: ModelEntry, image: Network, video: Network) -> None:
    """Merge the LoRAs of an entry into its UNets; those on torch's meta device are only checked.

    Raises:
        ConfigurationError: a file is no LoRA, is of an unknown kind, or does not fit.
    """
    _fuse("unet", {"image": image, "video": video}, [LoraFile(lora) for lora in entry.all_loras])


def adapt_text_encoders(entry: ModelEntry, image: TextEncoder, video: TextEncoder) -> tuple[TextEncoder, TextEncoder]:
    """(image's, video's) with the LoRAs and textual inversions of an entry; one object only if both get the same.

    Those on torch's meta device are only checked.

    Raises:
        ConfigurationError: a file is not one, is of an unknown kind, or does not fit.
    """
    loras = [LoraFile(lora) for lora in entry.all_loras]
    on = [lora.on for lora in loras if any(layer.target == "text_encoder" for layer in lora.layers)]
    on += [inversion.on for inversion in entry.textual_inversions]
    if image is video and any(len(set(roles)) == 1 for roles in on):
        image = TextEncoder(copy.deepcopy(video.tokenizer), _with_same_weights(video.encoder))
    encoders: dict[Role, TextEncoder] = {"video": video} if image is video else {"image": image, "video": video}
    _fuse("text_encoder", {role: text.encoder for role, text in encoders.items()}, loras)
    for role, text in encoders.items():
        inversions = [inversion for inversion in entry.textual_inversions if role in inversion.on]
        encoders[role] = add_inversions(text, inversions, role) if inversions else text
    return encoders.get("image", encoders["video"]), encoders["video"]


@errors_only("diffusers")
def check_adapters(entry: ModelEntry) -> None:
    """Check the LoRAs and textual inversions of an entry as loading does, without the weights of its networks."""
    if not entry.all_loras and not entry.textual_inversions:
        return
    with torch.device("meta"):
        unets, encoders = _empty_unets(entry), _empty_text_encoders(entry)
    fuse_unet_loras(entry, *unets)
    adapt_text_encoders(entry, *encoders)


def _fuse(target: Target, networks: Mapping[Role, Network], loras: Sequence[LoraFile]) -> None:
    """Check all files, then merge. A parameter that two networks share and that gets the same LoRAs stays shared."""
    plans = {role: _by_module(loras, target, role, network) for role, network in networks.items()}
    merged: dict[tuple[int, tuple[int, ...]], dict[str, nn.Parameter]] = {}
    replaced: list[nn.Parameter] = []  # kept, so that no other parameter gets an id of `merged`
    for role, network in networks.items():
        for name, adapters in plans[role].items():
            module = network.get_submodule(name)
            if module.weight.is_meta:
                continue
            key = (id(module.weight), tuple(adapters))
            if key not in merged:
                replaced.append(module.weight)
                merged[key] = _merged(module, {loras[number]: adapter for number, adapter in adapters.items()})
            for parameter, value in merged[key].items():
                setattr(module, parameter, value)


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
        files = ", ".join(str(lora.path) for lora in adapters)
        raise ConfigurationError(f"LoRA {files}: the sum overflows the weights of a layer; lower the scale")
    return {
        name: before[name] if torch.equal(value, before[name]) else nn.Parameter(value, requires_grad=False)
        for name, value in merged.items()
    }


def _with_same_weights(network: Network) -> Network:
    """A copy of the network with the same parameters and buffers."""
    return copy.deepcopy(network, {id(x): x for x in (*network.parameters(), *network.buffers())})


def _empty_unets(entry: ModelEntry) -> tuple[Network, Network]:
    """(image UNet, video UNet)."""
    base, video = None, _empty(entry, "unet")
    if entry.family == "animatediff":
        base, video = video, UNetMotionModel.from_unet2d(video, _empty(entry, "motion_adapter"))
    return _empty(entry, "image_unet") if "image_unet" in entry.all_components else base, video


def _empty_text_encoders(entry: ModelEntry) -> tuple[TextEncoder, TextEncoder]:
    """(image's, video's)."""
    video = _empty_text_encoder(entry, "")
    own = "image_text_encoder" in entry.all_components
    return _empty_text_encoder(entry, "image_") if own else video, video


def _empty_text_encoder(entry: ModelEntry, prefix: str) -> TextEncoder:
    kind: Network = CLIPTokenizer
    folder = component_folder(entry.all_components[f"{prefix}tokenizer"])
    return TextEncoder(kind.from_pretrained(folder, local_files_only=True), _empty(entry, f"{prefix}text_encoder"))


def _empty(entry: ModelEntry, name: str) -> Network:
    return empty_network(network_class(entry, name), read_config(component_folder(entry.all_components[name])))
