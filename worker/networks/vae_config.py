"""What the autoencoder's config decides: its precision, and how latents are scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.component_files import component_folder, read_config
from worker.networks.network_classes import Network


def vae_dtype(entry: ModelEntry, dtype: torch.dtype) -> torch.dtype:
    """The precision of the autoencoder where the networks run in `dtype`.

    The entry's `vae_dtype`; else float32 instead of float16 if config.json has `force_upcast`, as diffusers' SDXL
    pipelines do; else `dtype`. A config without the key has no `force_upcast`, though diffusers' class says true: the
    first autoencoders of Stable Diffusion have none and run in float16. On a CPU everything is float32.
    """
    if dtype is torch.float32:
        return dtype
    if entry.vae_dtype is not None:
        return getattr(torch, entry.vae_dtype)
    config = read_config(component_folder(entry.all_components["vae"]))
    return torch.float32 if dtype is torch.float16 and config.get("force_upcast") is True else dtype


def check_vae_config(entry: ModelEntry) -> None:
    """Raises ConfigurationError if latents cannot be scaled as the config says."""
    folder = component_folder(entry.all_components["vae"])
    config = read_config(folder)
    channels = config.get("z_dim", config.get("latent_channels", 4))
    scale, shift = config.get("scaling_factor", 1), config.get("shift_factor")
    wrong = [] if _is_number(scale) and scale != 0 else [f"scaling_factor={scale!r} must be a number other than 0"]
    if shift is not None and not _is_number(shift):
        wrong.append(f"shift_factor={shift!r} must be a number")
    for name in ("latents_mean", "latents_std"):
        numbers = config.get(name)
        if numbers is not None and not _are_numbers(numbers, channels):
            wrong.append(f"{name} must be {channels} numbers, one for each latent channel")
    if wrong:
        raise ConfigurationError(f"{folder / 'config.json'}: {'; '.join(wrong)}")


def unscaled_latents(vae: Network, latents: Tensor) -> Tensor:
    """What the decoder takes, from latents (N, C, h, w) of the diffusion models: diffusers' formulas for SDXL (mean and
    standard deviation of each channel), for Flux (a shift), and for the others."""
    config, scale = vae.config, vae.config.scaling_factor
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return latents * std / scale + mean
    latents = latents / scale
    return latents if config.shift_factor is None else latents + config.shift_factor


def scaled_latents(vae: Network, latents: Tensor) -> Tensor:
    """The reverse of `unscaled_latents`: what the diffusion models see, from latents (N, C, h, w) of the encoder."""
    config, scale = vae.config, vae.config.scaling_factor
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return (latents - mean) * scale / std
    return (latents if config.shift_factor is None else latents - config.shift_factor) * scale


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(cast("Sequence[Any]", value)) == count and all(map(_is_number, value))  # pyright: ignore[reportUnknownArgumentType]
