"""A LoRA file on this machine: its layers, shapes and numbers. Reading it needs no network."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.catalog.adapters import Lora, Role
from service.errors import ConfigurationError
from worker.networks.lora_layers import Adapter
from worker.networks.lora_names import AdapterLayer, Target, find_layers, read_layers
from worker.networks.network_classes import Network

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY  # isort: skip  # after network_classes (offline)


class LoraFile:
    """Raises ConfigurationError naming the file if it is none, has an unknown kind of weights, NaN or infinity."""

    def __init__(self, lora: Lora) -> None:
        path = lora.file.path
        assert path is not None, "check_files refuses what was not fetched"
        self.path, self.scale, self.on = path, lora.scale, lora.on
        try:
            self._file: Any = safe_open(path, "pt")
            keys: list[str] = list(self._file.keys())
            self.layers = read_layers(keys)
            self._config = _config(self._file.metadata() or {})
            for key in keys:
                if not torch.isfinite(self.tensor(key)).all():
                    raise ValueError(f"{key} is not finite; get the file again, or another version of it")
        except (OSError, SafetensorError) as e:
            raise ConfigurationError(f"LoRA {path} is not a safetensors file: {e}; get it again") from e
        except ValueError as e:
            raise ConfigurationError(f"LoRA {path}: {e}") from e

    def tensor(self, key: str) -> Tensor:
        return self._file.get_tensor(key).float()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())

    def layers_for(self, target: Target, role: Role) -> list[AdapterLayer]:
        """Motion modules exist only in the video model, so that their weights need no `on`."""
        return [
            layer
            for layer in self.layers
            if layer.target == target and (role == "video" if layer.is_motion else role in self.on)
        ]

    def adapters(self, target: Target, role: Role, network: Network) -> dict[str, Adapter]:
        """What the file adds to a network, by the name of the module.

        Args:
            network: the UNet or text encoder of `role`; its weights may be on the meta device.

        Raises:
            ConfigurationError: a key matches no layer, or has another shape.
        """
        try:
            found = find_layers(self.layers_for(target, role), network)
            adapters = {name: self._adapter(name, layer) for name, layer in found.items()}
            for name, adapter in adapters.items():
                adapter.check(network.get_submodule(name))
        except ValueError as e:
            second = "second " if target == "text_encoder_2" else ""
            what = f"{role} model" if target == "unet" else f"{second}text encoder of the {role} model"
            raise ConfigurationError(f"LoRA {self.path} does not fit the {what}: {e}") from e
        return adapters

    def _adapter(self, name: str, layer: AdapterLayer) -> Adapter:
        shapes = {part: self.shape(key) for part, key in layer.keys.items()}
        if math.prod(shapes.pop("alpha", ())) != 1:
            raise ValueError(f"{layer.keys['alpha']} is not one number")
        config = self._config.get(layer.target, {})
        alpha = _configured_alpha(config, name)
        if "alpha" in layer.keys:
            alpha = float(self.tensor(layer.keys["alpha"]))
        return Adapter(layer, shapes, self.tensor, alpha, bool(config.get("use_rslora")), self.scale)


def _config(metadata: Mapping[str, str]) -> dict[Target, dict[str, Any]]:
    """peft's configuration of each network, as diffusers' save_lora_weights stores it. Raises ValueError."""
    stored: object = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    if not isinstance(stored, dict):
        raise ValueError(f"its metadata {LORA_ADAPTER_METADATA_KEY} is not an object")
    config: dict[Target, dict[str, Any]] = {"unet": {}, "text_encoder": {}, "text_encoder_2": {}}
    for name, value in cast("dict[str, Any]", stored).items():
        target, _, setting = name.partition(".")
        if target in config:
            config[target][setting] = value
    return config


def _configured_alpha(config: Mapping[str, Any], module: str) -> float | None:
    """Alpha of a module; None without a configuration. Raises ValueError."""
    alpha: object = config.get("lora_alpha", config.get("alpha"))
    patterns: object = config.get("alpha_pattern")
    if isinstance(patterns, dict):
        for name in (module, f"text_model.{module}"):
            alpha = patterns.get(get_pattern_key(list(patterns), name), alpha)
    if alpha is not None and not (isinstance(alpha, int | float) and math.isfinite(alpha)):
        raise ValueError(f"its metadata {LORA_ADAPTER_METADATA_KEY} has the alpha {alpha!r}, which is no number")
    return alpha
