"""Converts weights in the layouts that people exchange them in to the diffusers layout, with diffusers' converters.

Values and dtypes are unchanged, and every weight of a component is used, or the file is refused. Nothing is fetched.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor

from service.catalog.family_components import SPARSE_CONTROL
from service.errors import ConfigurationError
from worker.networks.network_classes import Network, empty_network, errors_only

# after network_classes, which switches the hub client offline
from diffusers import AutoencoderKL, MotionAdapter, SparseControlNetModel, UNet2DConditionModel  # isort: skip
from diffusers.loaders import single_file_utils as converters  # isort: skip
from transformers import CLIPTextModel, CLIPTextModelWithProjection  # isort: skip
from transformers.utils import logging as transformers_logging  # isort: skip

Weights = dict[str, Tensor]
Config = Mapping[str, Any]

# Prefix of a component's weights in a checkpoint of Stable Diffusion 1 or 2.
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
CLASSES: dict[str, Network] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "motion_adapter": MotionAdapter,
    SPARSE_CONTROL: SparseControlNetModel,
}
SDXL_TEXT_2 = "conditioner.embedders.1.model."
# What training and other programs leave in a file, and no component reads.
NOT_WEIGHTS = re.compile(
    r"^(first_stage_model\.)?(loss|model_ema)\.|(position_ids|logit_scale|text_projection(\.weight)?)$"
)
POSITIONS = re.compile(r"pos_encoder\.pe$|pos_embed\.pe$")


def convert_checkpoint(
    file: Path, folders: Mapping[str, Path], configs: Mapping[str, Config], prefixes: Mapping[str, str] = PREFIXES
) -> None:
    """Convert a checkpoint of Stable Diffusion 1 or 2 or of SDXL in its original layout.

    Args:
        file: in safetensors.
        folders: where to write each component: unet, vae, text_encoder, scheduler, and of SDXL text_encoder_2.
        configs: the diffusers config of each.
        prefixes: what the weights of each are named with.

    Raises:
        ConfigurationError: a component is missing, or does not fit its config.
    """
    for name, folder in folders.items():
        if name == "scheduler":
            folder.mkdir(parents=True)
            (folder / "scheduler_config.json").write_text(json.dumps(configs[name], indent=2))
            continue
        part = _load(file, prefixes[name])
        if not part:
            raise ConfigurationError(f"{file} has no {name}: no weights are named {prefixes[name]}...")
        _convert(f"the {name} of {file}", name, part, configs[name], folder)


def convert_vae(file: Path, folder: Path, config: Config) -> None:
    """Convert a VAE of its own in a file, in either layout. Raises ConfigurationError."""
    _convert(str(file), "vae", _load(file), config, folder)


def convert_motion_modules(file: Path, folder: Path, config: Config, name: str = "motion_adapter") -> None:
    """Convert AnimateDiff's motion modules, in either layout, to a MotionAdapter, or with `name` "sparse_control" a
    SparseCtrl network.

    Raises:
        ConfigurationError: they do not fit the config, or encode positions in another way.
    """
    weights = {key.removeprefix("module."): value for key, value in _load(file).items()}
    _convert(str(file), name, weights, config, folder)


@errors_only("diffusers")
def _convert(what: str, name: str, weights: Weights, config: Config, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        with init_empty_weights():  # of parameters only: position encodings are buffers, and are computed
            network = empty_network(CLASSES[name], dict(config))
        expected = network.state_dict()
        converted = weights if set(expected) <= set(weights) else diffusers_names(name, network, weights)
    except Exception as e:  # an odd config or missing names lead to any error in diffusers
        raise ConfigurationError(f"{what} cannot be converted: {type(e).__name__} {_line(e)}") from e
    _check(what, expected, weights, converted)
    network.load_state_dict({key: converted[key] for key in expected if key in converted}, assign=True, strict=False)
    if len(dtypes := {value.dtype for value in network.parameters()}) == 1:
        network.to(*dtypes)  # the computed position encodings
    network.save_pretrained(folder, safe_serialization=True)


def diffusers_names(name: str, network: Network, weights: Weights) -> Weights:
    """The weights of a component in its original layout, named and shaped as diffusers does, by its converters."""
    config = {} if "text_encoder" in name else dict(network.config)  # the given one, completed with defaults
    match name:
        case "unet":
            return converters.convert_ldm_unet_checkpoint(weights, config)
        case "vae":
            return converters.convert_ldm_vae_checkpoint(weights, config)
        case "motion_adapter" | "sparse_control":
            return converters.convert_animatediff_checkpoint_to_diffusers(weights)
        case "text_encoder_2":
            return converters.convert_open_clip_checkpoint(network.text_model, weights, SDXL_TEXT_2)
        case _:
            original = any(key.endswith("text_model.embeddings.position_embedding.weight") for key in weights)
            convert = converters.convert_ldm_clip_checkpoint
            found = convert(weights) if original else converters.convert_open_clip_checkpoint(network, weights)
            return {key.removeprefix("text_model."): value for key, value in found.items()}


def _check(what: str, expected: Weights, weights: Weights, converted: Weights) -> None:
    """Raises ConfigurationError unless every weight is used, none is missing, and all have the expected shape."""
    used = {value.data_ptr() for key, value in converted.items() if key in expected}
    is_copied = any("in_proj_weight" in key for key in weights)  # OpenCLIP's, which are split
    differences = {
        "lacks": [key for key, value in expected.items() if value.is_meta and key not in converted],
        "has unexpected": [
            key
            for key, value in weights.items()
            if not is_copied
            and value.data_ptr() not in used
            and not NOT_WEIGHTS.search(key)
            and not POSITIONS.search(key)
        ],
        "has with another shape": [
            key for key, value in converted.items() if key in expected and value.shape != expected[key].shape
        ],
    }
    if errors := [f"{found} {len(keys)} weights, such as {keys[0]}" for found, keys in differences.items() if keys]:
        raise ConfigurationError(
            f"{what} {'; '.join(errors)}. It has another architecture than its config, or is incomplete"
        )
    _check_positions(what, expected, weights)


def _check_positions(what: str, expected: Weights, weights: Weights) -> None:
    """Position encodings are computed, so a file with others would silently be changed."""
    computed = {value.shape: value for key, value in expected.items() if POSITIONS.search(key)}
    for key, value in weights.items():
        if POSITIONS.search(key) and value.shape not in computed:
            raise ConfigurationError(f"{what}: {key} has shape {tuple(value.shape)}, its config other positions")
        if POSITIONS.search(key) and not torch.allclose(value.float(), computed[value.shape].float(), atol=2e-3):
            raise ConfigurationError(f"{what}: {key} is not AnimateDiff's sinusoidal encoding, which would be computed")


def _load(file: Path, prefix: str = "") -> Weights:
    """The weights whose names begin so: a checkpoint of SDXL is large."""
    try:
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118
    except Exception as e:  # safetensors' error, or that of the operating system
        raise ConfigurationError(f"{file} cannot be read: {_line(e)}; download it again") from e


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:300]
