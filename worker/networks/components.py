"""One component of a model, from its files to a network. Safetensors only; nothing is fetched, no code is run.

Knows diffusers and transformers, which are typed in part only: their objects are `Network` here. diffusers gives random
numbers to a weight that it does not find; here every name and shape is compared with the configuration first.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sampler import NoiseSchedule
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import UNSAFE, Component
from service.errors import ConfigurationError
from service.jobs.timestep_spacing import Spacing

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported below

from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from worker.networks.text_encoder import TextReader
from worker.networks.videocrafter import VideoCrafterUNet

Network = Any
Shapes = dict[str, tuple[int, ...]]

# What old checkpoints call a weight -> its name today.
OLD_NAMES = (
    (r"^text_model\.", ""),
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
NOT_WEIGHTS = re.compile(r"\.position_ids$")
SHOWN = 3  # names in a complaint


class WeightsMismatch(ConfigurationError):
    """The safetensors of a component lack weights of its configuration, have others, or have them in other shapes."""


def network(entry: ModelEntry, name: str, dtype: torch.dtype) -> Network:
    """A network on the CPU. Raises WeightsMismatch, or ConfigurationError for what cannot be read."""
    component = entry.parts[name]
    folder = _folder(component)
    check_shapes(entry, name)
    kind: Network = _kind(entry, name)
    if kind is VideoCrafterUNet:
        with torch.device("meta"):
            unet = VideoCrafterUNet(_config(folder))
        unet.load_weights({key: value.to(dtype) for key, value in _tensors(component).items()})
        return unet.eval().requires_grad_(False)
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "variant": component.source.variant,
        "dtype" if kind is CLIPTextModel else "torch_dtype": dtype,
    }
    loaded = kind.from_pretrained(folder, **settings)
    return loaded.eval().requires_grad_(False)


def text_reader(entry: ModelEntry, prefix: str, dtype: torch.dtype) -> TextReader:
    """Raises ConfigurationError if tokenizer and encoder do not belong together: then every prompt is noise."""
    transformers_logging.disable_progress_bar()  # its bar for loading weights is noise in a log
    folder = _folder(entry.parts[f"{prefix}tokenizer"])
    kind: Network = CLIPTokenizer
    tokenizer = kind.from_pretrained(folder, local_files_only=True)
    encoder = network(entry, f"{prefix}text_encoder", dtype)
    if len(tokenizer) != encoder.config.vocab_size:
        raise ConfigurationError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the text encoder {encoder.config.vocab_size}; "
            "they do not belong together"
        )
    return TextReader(tokenizer, encoder)


def schedule(component: Component, changes: Mapping[str, Any], spacing: Spacing) -> NoiseSchedule:
    """The scheduler's config, with the model entry's changes."""
    file = _folder(component) / "scheduler_config.json"
    config = {**_json(file), **changes, **spacing.model_dump()}
    try:
        return NoiseSchedule.from_config(config)
    except ValueError as e:
        raise ConfigurationError(f"{file}, with the changes of the model entry: {e}") from e


def fuse_lora(unet: Network, component: Component, scale: float) -> None:
    """Add a LoRA, in diffusers' or kohya's naming, to the weights. Its part for a text encoder is left out."""
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
            raise ValueError("it has no weights for a UNet")
        mixin.load_lora_into_unet(weights, alphas, unet)
    except (KeyError, OSError, RuntimeError, SafetensorError, ValueError) as e:
        raise ConfigurationError(f"LoRA {file} does not fit the image model: {e}") from e
    unet.fuse_lora(lora_scale=scale)
    unet.unload_lora()
    unet.requires_grad_(False)


def check_files(entry: ModelEntry) -> None:
    """Everything is here, nothing is a pickle, and what has a known sha256 has it. Raises ConfigurationError."""
    if missing := entry.missing:
        where = f"model folder {entry.path} lacks" if entry.path else f"model {entry.id} lacks"
        raise ConfigurationError(f"{where} {', '.join(missing)}; `ivmix models fetch {entry.id}` gets what a hub has")
    folders = {entry.path, *(part.path for part in entry.parts.values() if part.source.repo is None)} - {None}
    for folder in sorted(folder for folder in folders if folder is not None and folder.is_dir()):
        if unsafe := [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.suffix in UNSAFE]:
            raise ConfigurationError(f"model folder {folder} holds {', '.join(unsafe)}; only safetensors are loaded")
    for part in entry.parts.values():
        part.check()


def check_shapes(entry: ModelEntry, name: str) -> None:
    """Names and shapes of a component's weights against its configuration; reads headers, loads nothing."""
    component = entry.parts[name]
    expected, buffers = _expected(entry, name)
    found = _headers(component)
    wrong = {
        "lacks": sorted(set(expected) - set(found) - buffers),
        "has besides": sorted(set(found) - set(expected)),
        "has in another shape": sorted(k for k in set(found) & set(expected) if found[k] != expected[k]),
    }
    complaints = [f"{what} {_some(names)}" for what, names in wrong.items() if names]
    if complaints:
        raise WeightsMismatch(f"{component.path} does not fit its config.json: {'; '.join(complaints)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _expected(entry: ModelEntry, name: str) -> tuple[Shapes, set[str]]:
    """Shapes by name, and the names that are computed where they are not stored."""
    config = _config(_folder(entry.parts[name]))
    with torch.device("meta"):
        bare = _make(_kind(entry, name), config)
    shapes = {key: tuple(value.shape) for key, value in bare.state_dict().items()}
    return shapes, {key for key, _ in bare.named_buffers()}


def _make(kind: Network, config: dict[str, Any]) -> Network:
    if kind is CLIPTextModel:
        return CLIPTextModel(CLIPTextConfig(**config))
    return VideoCrafterUNet(config) if kind is VideoCrafterUNet else kind.from_config(config)


def _kind(entry: ModelEntry, name: str) -> Network:
    video = {
        "animatediff": UNet2DConditionModel,
        "modelscope": UNet3DConditionModel,
        "videocrafter": VideoCrafterUNet,
    }
    kinds: dict[str, Network] = {
        "text_encoder": CLIPTextModel,
        "image_text_encoder": CLIPTextModel,
        "vae": AutoencoderKL,
        "unet": video[entry.family],
        "motion_adapter": MotionAdapter,
        "image_unet": UNet2DConditionModel,
    }
    return kinds[name]


def _headers(component: Component) -> Shapes:
    shapes: Shapes = {}
    for file in _weight_files(component):
        try:
            with _open(file) as weights:
                for key in weights.keys():  # noqa: SIM118  not a dict
                    shapes[_todays_name(key)] = tuple(weights.get_slice(key).get_shape())
        except (OSError, SafetensorError) as e:
            raise ConfigurationError(f"{file} is not a safetensors file: {e}") from e
    return {key: shape for key, shape in shapes.items() if not NOT_WEIGHTS.search(key)}


def _tensors(component: Component) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(component):
        with _open(file) as weights:
            tensors |= {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
    return tensors


def _open(file: Path) -> Any:  # safetensors has no types for what it opens
    return safe_open(file, "pt")


def _todays_name(name: str) -> str:
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def _weight_files(component: Component) -> list[Path]:
    assert component.root is not None
    folder = _folder(component)
    names = sorted(file.relative_to(component.root).as_posix() for file in folder.glob("*.safetensors"))
    if files := [component.root / name for name in names if component.has(name)]:
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
