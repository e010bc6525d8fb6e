"""Checks the LoRAs that requests may choose, when a model is loaded or verified."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import torch

from service.catalog.adapters import Role
from service.catalog.model_entry import ModelEntry
from service.catalog.selectable_loras import ROLES, SelectableLora
from service.errors import ConfigurationError
from worker.networks.lora import check_text_encoders, checked_sum
from worker.networks.lora_file import LoraFile
from worker.networks.lora_names import TEXT_TARGETS, Target
from worker.networks.network_classes import Network
from worker.networks.stored_layers import StoredLayers
from worker.networks.text_encoder import AnyTextEncoder


def check_selectable_loras(
    entry: ModelEntry, unets: tuple[Network, Network], encoders: tuple[AnyTextEncoder, AnyTextEncoder]
) -> AnyTextEncoder:
    """Every selectable LoRA can be applied whole to each network that it may change, and has weights for it.

    Where the networks are on torch's meta device, the sums with the stored weights are checked too, with the default
    scale; `LoraSwitch` checks those of a job.

    Args:
        unets, encoders: of the image model and of the video model.

    Returns:
        The image model's text encoder: a copy with the same parameters, if a LoRA may change one of the two alone.

    Raises:
        ConfigurationError: naming the file, and the weights that do not fit.
    """
    has_text = False
    for lora in entry.selectable_loras:
        file = LoraFile(lora)
        check_text_encoders(entry, file)
        _check_networks(lora, file)
        has_text |= any(layer.target != "unet" for layer in file.layers)
        for role, unet, encoder in zip(ROLES, unets, encoders, strict=True):
            if role in lora.on:
                _check_fit(entry, file, role, "unet", unet)
                for target in TEXT_TARGETS[: len(encoder.parts)]:
                    _check_fit(entry, file, role, target, encoder.parts[target].layers)
    image, video = encoders
    return image.copied() if has_text and image is video else image


def _check_networks(lora: SelectableLora, file: LoraFile) -> None:
    """`on` is what GET /v1/models shows; each of it must mean something."""
    motion = [layer for layer in file.layers if layer.is_motion]
    if motion and "video" not in lora.on:
        key = min(motion[0].keys.values())
        raise ConfigurationError(
            f"LoRA {file.path}: it has weights of motion modules, which only the video model has ({key}); "
            f'add "video" to `on` of selectable LoRA {lora.name}'
        )
    if len(motion) == len(file.layers) and "image" in lora.on:
        raise ConfigurationError(
            f'LoRA {file.path}: it has weights of motion modules only; set on = ["video"] for selectable LoRA '
            f"{lora.name}"
        )


def _check_fit(entry: ModelEntry, file: LoraFile, role: Role, target: Target, network: Network) -> None:
    stored = StoredLayers(entry, target, role)
    for name, adapter in file.adapters(target, role, network).items():
        module = network.get_submodule(name)
        if module.weight.is_meta:
            checked_sum(module, name, {file: adapter}, stored, getattr(torch, entry.dtype))
