"""Checks of a component's config.json: the class that its place needs, and nothing that is not implemented."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from service.catalog.family_components import SDXL, SPARSE_CONTROL, Family
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.component_files import DOWNLOAD_AGAIN
from worker.networks.network_classes import network_class
from worker.networks.sparse_control_checks import check_control_config

SDXL_INPUT = "text_time"  # pooled text embeddings and sizes
# Inputs of diffusers' UNets next to latents, timestep and text.
OTHER_INPUTS = {
    "addition_embed_type": "another second text or size input",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "another text or image encoder",
    "time_cond_proj_dim": "a distilled guidance scale",
}
# Highest numbers by the end of their names: with a damaged one, building would take hours or all memory.
HIGHEST = {
    "layers_per_block": 200,
    "hidden_layers": 200,
    "layers_per_mid_block": 200,
    "num_layers": 200,
    "max_seq_length": 100_000,
    "num_train_timesteps": 100_000,
}


def check_config(entry: ModelEntry, name: str, file: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigurationError if the config is that of another class, or has an input that no sampler gives."""
    expected = _class_of(entry, name)
    text = entry.all_components[name].kind in ("text_encoder", "image_encoder")
    found: object = config.get("architectures" if text else "_class_name") or expected
    if expected is not None and found not in (expected, [expected]):
        raise ConfigurationError(
            f"{file} is that of a {str(found)[:80]}; {name} of family {entry.family} must be a {expected}: use the "
            "folder of such a model, or another family"
        )
    if name == "motion_adapter" and config.get("conv_in_channels") is not None:
        raise ConfigurationError(
            f"{file}: conv_in_channels={config['conv_in_channels']!r} is not supported: with this adapter (PIA) the "
            "UNet also wants an image; use one of AnimateDiff's text-to-video adapters"
        )
    if name.endswith("unet"):
        _check_inputs(entry.family, file, config)
    if name == SPARSE_CONTROL:
        check_control_config(file, config)
    check_numbers(file, config)


def _check_inputs(family: Family, file: Path, config: Mapping[str, Any]) -> None:
    added = config.get("addition_embed_type")
    is_sdxl = added == SDXL_INPUT
    if is_sdxl != (family == SDXL):
        kind = "a UNet of SDXL" if is_sdxl else "no UNet of SDXL"
        other = f"family {SDXL}" if is_sdxl else "another family, such as animatediff for Stable Diffusion 1.5"
        raise ConfigurationError(
            f"{file}: addition_embed_type={added!r}: this is {kind}; use {other}, or a UNet that family {family} takes"
        )
    for key, what in OTHER_INPUTS.items():
        if config.get(key) is not None and not (is_sdxl and key == "addition_embed_type"):
            raise ConfigurationError(
                f"{file}: {key}={config[key]!r} is not supported: this UNet also wants {what}; use one that takes "
                "latents, timestep and text only, such as those of Stable Diffusion 1 and 2"
            )


def check_numbers(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigurationError if a number is higher than any released model's."""
    for key, value in config.items():
        most = next((most for end, most in HIGHEST.items() if key.endswith(end)), math.inf)
        if any(number > most for number in _numbers(value)):
            raise ConfigurationError(f"{file}: {key}={value!r} is more than {most}; {DOWNLOAD_AGAIN}")


def _class_of(entry: ModelEntry, name: str) -> str | None:
    """diffusers' or transformers' name of the class; None: ports name theirs as they like."""
    if name == "unet" and entry.family == "videocrafter":
        return None
    return network_class(entry, name).__name__


def _numbers(value: object) -> Iterable[float]:
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value
