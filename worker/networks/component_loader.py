"""Loads one component of a model from its files: safetensors only; nothing is fetched and no code is run.

diffusers initialises missing weights randomly, so names and shapes are compared with the configuration first.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sampler import NoiseSchedule
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import PICKLE_SUFFIXES, Component
from service.errors import ConfigurationError
from service.jobs.timestep_spacing import Spacing

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it when it is imported below

from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from worker.networks.text_encoder import TextEncoder
from worker.networks.videocrafter_unet import VideoCrafterUNet

Network = Any  # diffusers and transformers are only partly typed
Shapes = dict[str, tuple[int, ...]]

# Regular expression of a weight's name in old checkpoints -> its current name.
RENAMED_WEIGHTS = (
    (r"^text_model\.", ""),
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
NOT_WEIGHTS = re.compile(r"\.position_ids$")
MAX_NAMES_SHOWN = 3


class WeightsMismatch(ConfigurationError):
    """Names or shapes of a component's weights differ from its configuration."""


@contextmanager
def errors_only(name: str) -> Generator[None]:
    """Suppress the warnings of a logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@errors_only("diffusers")  # it warns of VideoCrafter's fps_cond
def load_network(entry: ModelEntry, name: str, dtype: torch.dtype) -> Network:
    """A network on the CPU. Raises WeightsMismatch, or ConfigurationError if a file cannot be read."""
    component = entry.all_components[name]
    folder = _folder(component)
    check_shapes(entry, name)
    kind: Network = _network_class(entry, name)
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "variant": component.source.variant,
        "dtype" if kind is CLIPTextModel else "torch_dtype": dtype,
    }
    loaded = kind.from_pretrained(folder, **settings)
    return loaded.eval().requires_grad_(False)


def load_text_encoder(entry: ModelEntry, prefix: str, dtype: torch.dtype) -> TextEncoder:
    """Raises ConfigurationError if tokenizer and encoder do not match: every prompt would turn into noise."""
    transformers_logging.disable_progress_bar()
    folder = _folder(entry.all_components[f"{prefix}tokenizer"])
    kind: Network = CLIPTokenizer
    tokenizer = kind.from_pretrained(folder, local_files_only=True)
    encoder = load_network(entry, f"{prefix}text_encoder", dtype)
    if len(tokenizer) != encoder.config.vocab_size:
        raise ConfigurationError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}; "
            "use the tokenizer that the encoder was trained with"
        )
    return TextEncoder(tokenizer, encoder)


def load_schedule(component: Component, overrides: Mapping[str, Any], spacing: Spacing) -> NoiseSchedule:
    """The scheduler's config with the overrides of the model entry. Raises ConfigurationError."""
    file = _folder(component) / "scheduler_config.json"
    config = {**_json(file), **overrides, **spacing.model_dump()}
    try:
        return NoiseSchedule.from_config(config)
    except ValueError as e:
        raise ConfigurationError(f"{file}, with the overrides of the model entry: {e}") from e


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


def check_files(entry: ModelEntry) -> None:
    """Raises ConfigurationError if a file is missing, is a pickle, or differs from its known SHA-256."""
    if missing := entry.missing:
        where = f"model folder {entry.path} lacks" if entry.path else f"model {entry.id} lacks"
        raise ConfigurationError(f"{where} {', '.join(missing)}; `ivmix models fetch {entry.id}` downloads hub files")
    components = entry.all_components.values()
    local = {entry.path, *(component.path for component in components if component.source.repo is None)}
    for folder in sorted(folder for folder in local if folder is not None and folder.is_dir()):
        pickles = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.suffix in PICKLE_SUFFIXES]
        if pickles:
            raise ConfigurationError(f"model folder {folder} holds {', '.join(pickles)}; only safetensors are loaded")
    for component in components:
        component.verify()


def check_shapes(entry: ModelEntry, name: str) -> None:
    """Compare a component's weights with its configuration, reading headers only. Raises WeightsMismatch."""
    component = entry.all_components[name]
    expected, buffers = _expected_shapes(entry, name)
    found = _stored_shapes(component)
    differences = {
        "lacks": sorted(set(expected) - set(found) - buffers),
        "has unexpected": sorted(set(found) - set(expected)),
        "has with another shape": sorted(k for k in set(found) & set(expected) if found[k] != expected[k]),
    }
    if errors := [f"{what} {_abbreviated(names)}" for what, names in differences.items() if names]:
        raise WeightsMismatch(f"{component.path} does not fit its config.json: {'; '.join(errors)}")


def _abbreviated(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


@errors_only("diffusers")
def _expected_shapes(entry: ModelEntry, name: str) -> tuple[Shapes, set[str]]:
    """Shapes by name, and the names of buffers, which need not be stored."""
    config = _config(_folder(entry.all_components[name]))
    with torch.device("meta"):
        empty = _from_config(_network_class(entry, name), config)
    shapes = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    return shapes, {key for key, _ in empty.named_buffers()}


def _from_config(kind: Network, config: dict[str, Any]) -> Network:
    return CLIPTextModel(CLIPTextConfig(**config)) if kind is CLIPTextModel else kind.from_config(config)


def _network_class(entry: ModelEntry, name: str) -> Network:
    video = {
        "animatediff": UNet2DConditionModel,
        "modelscope": UNet3DConditionModel,
        "videocrafter": VideoCrafterUNet,
    }
    classes: dict[str, Network] = {
        "text_encoder": CLIPTextModel,
        "image_text_encoder": CLIPTextModel,
        "vae": AutoencoderKL,
        "unet": video[entry.family],
        "motion_adapter": MotionAdapter,
        "image_unet": UNet2DConditionModel,
    }
    return classes[name]


def _stored_shapes(component: Component) -> Shapes:
    shapes: Shapes = {}
    for file in _weight_files(component):
        try:
            with _open(file) as weights:
                for key in weights.keys():  # noqa: SIM118  not a dict
                    shapes[_current_name(key)] = tuple(weights.get_slice(key).get_shape())
        except (OSError, SafetensorError) as e:
            raise ConfigurationError(f"{file} is not a safetensors file: {e}") from e
    return {key: shape for key, shape in shapes.items() if not NOT_WEIGHTS.search(key)}


def _open(file: Path) -> Any:  # safetensors has no types for it
    return safe_open(file, "pt")


def _current_name(name: str) -> str:
    for old, new in RENAMED_WEIGHTS:
        name = re.sub(old, new, name)
    return name


def _weight_files(component: Component) -> list[Path]:
    assert component.root is not None
    folder = _folder(component)
    names = sorted(file.relative_to(component.root).as_posix() for file in folder.glob("*.safetensors"))
    if files := [component.root / name for name in names if component.has_file(name)]:
        return files
    variant = f" of variant {component.source.variant}" if component.source.variant else ""
    raise ConfigurationError(f"{folder} has no safetensors{variant}; pickles (.bin, .ckpt) are not loaded")


def _folder(component: Component) -> Path:
    if component.path is None:
        raise ConfigurationError(f"{component.name} has not been fetched")
    return component.path


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise ConfigurationError(f"{file} cannot be read: {e}") from e
