"""Applies the LoRAs and textual inversions of an entry: everything in a file, or the file is refused by name.

A LoRA may be on one of two networks that share their weights, so that merged weights are new parameters and what no
LoRA changes stays shared.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

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

ROLES: tuple[Role, ...] = ("image", "video")


def fuse_unet_loras(entry: ModelEntry, image: Network, video: Network) -> None:
    """Merge the LoRAs of an entry into its UNets. Raises ConfigurationError if one does not fit."""
    _fuse("unet", {"image": image, "video": video}, [LoraFile(lora) for lora in entry.all_loras])


def adapt_text_encoders(entry: ModelEntry, image: TextEncoder, video: TextEncoder) -> tuple[TextEncoder, TextEncoder]:
    """(image's, video's) with the LoRAs and textual inversions of an entry; one object only if both get the same.

    Raises:
        ConfigurationError: a file does not fit.
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
    """Check the LoRAs and textual inversions of an entry as loading does, without the weights of its networks.

    Raises:
        ConfigurationError: a file is not one, is of an unknown kind, or does not fit a network of the model.
    """
    if not entry.all_loras and not entry.textual_inversions:
        return
    loras = [LoraFile(lora) for lora in entry.all_loras]
    with torch.device("meta"):
        unets, encoders = _empty_unets(entry), _empty_text_encoders(entry)
        for lora, role in itertools.product(loras, ROLES):
            lora.adapters("unet", role, unets[role])
            lora.adapters("text_encoder", role, encoders[role].encoder)
    for role, text in encoders.items():
        add_inversions(text, [inversion for inversion in entry.textual_inversions if role in inversion.on], role)


def _fuse(target: Target, networks: Mapping[Role, Network], loras: Sequence[LoraFile]) -> None:
    merged: dict[tuple[int, tuple[int, ...]], tuple[nn.Parameter, nn.Parameter | None]] = {}
    replaced: list[nn.Parameter] = []  # kept, so that no id of `merged` is given to another parameter
    for role, network in networks.items():
        by_module: dict[str, dict[int, Adapter]] = {}
        for number, lora in enumerate(loras):
            for name, adapter in lora.adapters(target, role, network).items():
                by_module.setdefault(name, {})[number] = adapter
        for name, adapters in by_module.items():
            module = network.get_submodule(name)
            key = (id(module.weight), tuple(adapters))
            if key not in merged:
                replaced.append(module.weight)
                merged[key] = _merged(module, {loras[number]: adapter for number, adapter in adapters.items()})
            module.weight, module.bias = merged[key]


def _merged(module: Any, adapters: Mapping[LoraFile, Adapter]) -> tuple[nn.Parameter, nn.Parameter | None]:
    """The module's weight and bias with all adapters: each is computed without the others, so the order is free."""
    weight, bias = module.weight.float(), None if module.bias is None else module.bias.float()
    changed_weight, changed_bias = weight.clone(), None if bias is None else bias.clone()
    for lora, adapter in adapters.items():
        try:
            with_adapter = adapter.merged(module)
        except ValueError as e:
            raise ConfigurationError(f"LoRA {lora.path}: {min(adapter.layer.keys.values())}: {e}") from e
        changed_weight += with_adapter[0] - weight
        if changed_bias is not None and bias is not None:
            changed_bias += cast("Any", with_adapter[1]) - bias
    kept = nn.Parameter(changed_weight.to(module.weight.dtype), requires_grad=False)
    if not torch.isfinite(kept).all():
        raise ConfigurationError(
            f"LoRAs {', '.join(str(lora.path) for lora in adapters)} overflow {module.weight.dtype}; lower their scale"
        )
    same_bias = bias is None or changed_bias is None or torch.equal(bias, changed_bias)
    return kept, module.bias if same_bias else nn.Parameter(changed_bias.to(module.bias.dtype), requires_grad=False)


def _with_same_weights(network: Network) -> Network:
    """A copy of the network with the same parameters and buffers."""
    return copy.deepcopy(network, {id(x): x for x in (*network.parameters(), *network.buffers())})


def _empty_unets(entry: ModelEntry) -> dict[Role, Network]:
    base, video = None, _empty(entry, "unet")
    if entry.family == "animatediff":
        base, video = video, UNetMotionModel.from_unet2d(video, _empty(entry, "motion_adapter"))
    return {"image": _empty(entry, "image_unet") if "image_unet" in entry.all_components else base, "video": video}


def _empty_text_encoders(entry: ModelEntry) -> dict[Role, TextEncoder]:
    prefix = "image_" if "image_text_encoder" in entry.all_components else ""
    encoders: dict[Role, TextEncoder] = {}
    for role, name in (("image", prefix), ("video", "")):
        kind: Network = CLIPTokenizer
        tokenizer = kind.from_pretrained(
            component_folder(entry.all_components[f"{name}tokenizer"]), local_files_only=True
        )
        encoders[role] = TextEncoder(tokenizer, _empty(entry, f"{name}text_encoder"))
    return encoders


def _empty(entry: ModelEntry, name: str) -> Network:
    return empty_network(network_class(entry, name), read_config(component_folder(entry.all_components[name])))
