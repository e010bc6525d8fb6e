"""Adds LoRAs to the weights of a network."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

from safetensors import SafetensorError

from service.catalog.weight_files import Component
from service.errors import ConfigurationError
from worker.networks.network_classes import Network

from diffusers.loaders import StableDiffusionLoraLoaderMixin  # isort: skip  # after network_classes (offline)


def fuse_lora(unet: Network, component: Component, scale: float) -> None:
    """Add a LoRA in diffusers' or kohya's naming to the weights. Weights for a text encoder are ignored.

    Raises ConfigurationError if it does not fit the UNet.
    """
    file = component.path
    assert file is not None
    mixin: Network = StableDiffusionLoraLoaderMixin
    try:
        weights, alphas = mixin.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
            unet_config=unet.config,
        )
        weights = {name: value for name, value in weights.items() if name.startswith("unet.")}
        if not weights:
            raise ValueError("it has no UNet weights")
        mixin.load_lora_into_unet(weights, alphas, unet)
    except (KeyError, OSError, RuntimeError, SafetensorError, ValueError) as e:
        raise ConfigurationError(f"LoRA {file} does not fit the image model: {e}") from e
    unet.fuse_lora(lora_scale=scale)
    unet.unload_lora()
    unet.requires_grad_(False)
