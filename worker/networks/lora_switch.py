"""Switches the LoRAs of a loaded model between two jobs.

Merged weights take the place of the model's own, which stay as they are and come back bit for bit. Calls of the
networks cost nothing more, whatever kind a LoRA is.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from service.catalog.adapters import Role
from service.catalog.model_entry import ModelEntry
from service.catalog.selectable_loras import ROLES
from service.errors import ServiceError
from service.jobs.lora_choice import LoraUse
from worker.networks.lora_cache import LoraCache
from worker.networks.lora_layers import Adapter
from worker.networks.lora_names import TEXT_TARGETS, Target
from worker.networks.network_classes import Network
from worker.networks.text_encoder import AnyTextEncoder

log = logging.getLogger("ivmix.child")

Parameters = dict[str, nn.Parameter]
CPU = torch.device("cpu")


class LoraNotUsable(ServiceError):
    """The LoRAs of a job cannot be used together with the model."""


class Layer(NamedTuple):
    """A layer of one network; both networks may have one of the same name, with the same weights."""

    target: Target
    name: str
    role: Role


@dataclass(frozen=True)
class Merged:
    """What takes the place of a layer's own parameters.

    Args:
        key: names and scales of the LoRAs.
    """

    key: tuple[tuple[str, float], ...]
    own: Parameters
    parameters: Parameters = field(repr=False)


class LoraSwitch:
    """
    Args:
        unets, encoders: the networks that LoRAs change, of the image model and of the video model; the two may share
            parameters, and the encoders be one object if no LoRA changes them.
        on_change: called before weights change; drops what was computed from them.
    """

    def __init__(
        self,
        entry: ModelEntry,
        unets: tuple[Network, Network],
        encoders: tuple[AnyTextEncoder, AnyTextEncoder],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._entry, self._on_change = entry, on_change
        self._networks: dict[tuple[Target, Role], Network] = {}
        for role, unet, encoder in zip(ROLES, unets, encoders, strict=True):
            self._networks["unet", role] = unet
            for target in TEXT_TARGETS[: len(encoder.parts)]:
                self._networks[target, role] = encoder.parts[target].layers
        self._layers = {key: dict(network.named_modules()) for key, network in self._networks.items()}
        self._merged: dict[Layer, Merged] = {}
        self._used: tuple[LoraUse, ...] | None = ()
        self.cache = LoraCache(entry.selectable_loras)

    def use(self, loras: Sequence[LoraUse]) -> None:
        """Give the networks these LoRAs and no others. Nothing happens if they have them already.

        Raises:
            LoraNotUsable: the registry entry has no such LoRA any more, or the sum overflows the entry's `dtype`.
            ConfigurationError: the file of a LoRA cannot be read, or was changed.
        """
        before = self._used
        if before == tuple(loras):
            return
        began = time.perf_counter()
        self._used = None  # until all layers are changed
        wanted = self._wanted(loras)
        self._change(wanted)
        self._used = tuple(loras)
        self.cache.trim()
        seconds = time.perf_counter() - began
        log.info("LoRAs switched from %s to %s in %.3f s", _words(before), _words(loras), seconds)

    def digest(self, loras: Iterable[LoraUse]) -> str:
        """Of the files of LoRAs in use."""
        return self.cache.digest(lora.name for lora in loras if lora.scale)

    def _wanted(self, loras: Iterable[LoraUse]) -> dict[Layer, dict[str, Adapter]]:
        """Adapters with the scales of the job, by layer and name of the LoRA. A scale of 0 changes nothing."""
        found: dict[Layer, dict[str, Adapter]] = {}
        for use in loras:
            self._check(use)
            lora = self.cache.get(use.name) if use.scale else None
            for (target, role), network in self._networks.items() if lora else ():
                adapters = lora.adapters(target, role, network) if lora and role in use.networks else {}
                for name, adapter in adapters.items():
                    layer = found.setdefault(Layer(target, name, role), {})
                    layer[use.name] = replace(adapter, scale=use.scale)
        return found

    def _check(self, use: LoraUse) -> None:
        """The record of a job may be older than the registry of this worker."""
        lora = self.cache.known.get(use.name)
        if lora is None or not set(use.networks) <= set(lora.on):
            known = ", ".join(self.cache.known) or "none"
            raise LoraNotUsable(
                f"Model '{self._entry.id}' has no LoRA '{use.name}' for {' and '.join(use.networks)} any more; "
                f"it has {known}."
            )

    @torch.no_grad()
    def _change(self, wanted: Mapping[Layer, Mapping[str, Adapter]]) -> None:
        keys = {layer: tuple((name, x.scale) for name, x in adapters.items()) for layer, adapters in wanted.items()}
        have = {layer: merged.key for layer, merged in self._merged.items()}
        changed = [layer for layer in {**have, **keys} if have.get(layer) != keys.get(layer)]
        if changed:
            self._on_change()
        by_name: dict[tuple[Target, str], list[Layer]] = {}
        for layer in changed:  # both roles together, because they may share their weights
            by_name.setdefault((layer.target, layer.name), []).append(layer)
        for (target, name), layers in by_name.items():
            with self._on_device(target, name):
                for layer in layers:
                    self._restore(layer)
                for layer in layers:
                    if layer in wanted:
                        self._merge(layer, keys[layer], wanted[layer])

    def _restore(self, layer: Layer) -> None:
        if (merged := self._merged.pop(layer, None)) is not None:
            _set(self._module(layer), merged.own)

    def _merge(self, layer: Layer, key: tuple[tuple[str, float], ...], adapters: Mapping[str, Adapter]) -> None:
        module = self._module(layer)
        own = dict(module.named_parameters(recurse=False))
        twin = self._merged.get(layer._replace(role="video" if layer.role == "image" else "image"))
        if twin is not None and twin.key == key and _are_same(twin.own, own):
            merged = twin.parameters
        else:
            merged = self._sum(layer, module, adapters)
        self._merged[layer] = Merged(key, own, merged)
        _set(module, merged)

    def _sum(self, layer: Layer, module: nn.Module, adapters: Mapping[str, Adapter]) -> Parameters:
        """Each adapter is computed without the others, so that their order changes nothing but rounding."""
        own = dict(module.named_parameters(recurse=False))
        sums = {name: value.to(torch.float32, copy=True) for name, value in own.items()}
        for name, adapter in adapters.items():
            try:
                _add(sums, module, adapter)
            except ValueError as e:
                raise LoraNotUsable(f"LoRA '{name}' with scale {adapter.scale:g}: {e}") from e
        largest = torch.finfo(getattr(torch, self._entry.dtype)).max
        if not all(value.abs().max() <= largest for value in sums.values()):  # of NaN too
            raise LoraNotUsable(
                f"LoRAs {', '.join(f'{name} {x.scale:g}' for name, x in adapters.items())}: the sum overflows the "
                f"weights of {layer.name} in {self._entry.dtype}; lower their scales."
            )
        return {
            name: nn.Parameter(torch.empty_like(own[name]).copy_(value), requires_grad=False)
            for name, value in sums.items()
        }

    @contextmanager
    def _on_device(self, target: Target, name: str) -> Generator[None]:
        """A layer's own parameters are on the networks' device inside, and afterwards if a network uses them: those
        that are replaced wait in the memory of the host."""
        layers = [Layer(target, name, role) for role in ROLES if name in self._layers.get((target, role), {})]
        device = next(self._networks[target, layers[0].role].parameters()).device
        for parameter in self._replaced(layers):
            parameter.data = parameter.data.to(device)
        try:
            yield
        finally:
            in_use = {id(x) for layer in layers for x in self._module(layer).parameters(recurse=False)}
            for parameter in self._replaced(layers):
                if id(parameter) not in in_use:
                    parameter.data = parameter.data.to(CPU)

    def _replaced(self, layers: Iterable[Layer]) -> list[nn.Parameter]:
        return [own for layer in layers if layer in self._merged for own in self._merged[layer].own.values()]

    def _module(self, layer: Layer) -> nn.Module:
        return self._layers[layer.target, layer.role][layer.name]


def _add(sums: Mapping[str, torch.Tensor], module: nn.Module, adapter: Adapter) -> None:
    """Add what an adapter adds to a module's parameters to float32 sums. Raises ValueError as `Adapter.merged`."""
    if adapter.is_plain:
        weight = sums["weight"]
        weight.add_(adapter.product(weight.device).view(weight.shape))
        return
    own = dict(module.named_parameters(recurse=False))
    for name, value in adapter.merged(module).items():
        sums[name].add_(value - own[name].float())


def _set(module: nn.Module, parameters: Parameters) -> None:
    for name, parameter in parameters.items():
        setattr(module, name, parameter)


def _are_same(a: Parameters, b: Parameters) -> bool:
    return all(a[name] is parameter for name, parameter in b.items())


def _words(loras: Sequence[LoraUse] | None) -> str:
    if loras is None:
        return "a switch that failed"
    return ", ".join(f"{lora.name} {lora.scale:g} ({'+'.join(lora.networks)})" for lora in loras) or "none"
