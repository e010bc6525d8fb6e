"""Single layers of a network that is on torch's meta device, with their weights from its files."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import nn

from service.catalog.adapters import Role
from service.catalog.model_entry import ModelEntry
from worker.networks.lora_names import Target
from worker.networks.weight_checks import StoredWeight, read_weights, stored_weights
from worker.networks.weight_files import weight_files


class StoredLayers:
    """The files of the UNet or text encoder that one of the entry's two models has."""

    def __init__(self, entry: ModelEntry, target: Target, role: Role) -> None:
        self._entry, self._target, self._role = entry, target, role

    def read(self, name: str, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A copy of the module `name` with its stored weights in `dtype`. Raises ConfigurationError."""
        layer = copy.deepcopy(module)  # on the meta device
        keys = {f"{name}.{parameter}": parameter for parameter, _ in module.named_parameters()}
        wanted = {key: self._stored[key] for key in keys}
        for key, value in read_weights(wanted, torch.finfo(dtype).max):
            setattr(layer, keys[key], nn.Parameter(value.to(dtype), requires_grad=False))
        return layer

    @cached_property
    def _stored(self) -> dict[str, StoredWeight]:
        components = self._entry.all_components
        own = f"image_{self._target}" if self._role == "image" else self._target
        names = [own if own in components else self._target]
        if self._target == "unet" and self._role == "video" and "motion_adapter" in components:
            names.append("motion_adapter")  # its weights have the same names in the UNet that they are merged into
        files = [file for name in names for file in weight_files(components[name]).files]
        return stored_weights(files)
