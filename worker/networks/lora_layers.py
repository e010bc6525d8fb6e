"""One layer's weights of a LoRA file, checked and merged by peft's own layers."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners.loha import LoHaModel
from peft.tuners.lokr import LoKrModel
from peft.tuners.lora.layer import dispatch_default
from peft.utils.integrations import init_empty_weights
from torch import Tensor, nn

from worker.networks.lora_names import MAGNITUDE, AdapterLayer

Shape = tuple[int, ...]
KINDS = {"lora_": "LoRA", "hada_": "LoHa", "lokr_": "LoKr"}  # by the first letters of their parts
# Parts whose first side is the rank. LoKr has none if both factors are whole: then it is not scaled.
RANK_PARTS = {"LoRA": ("lora_A.weight",), "LoHa": ("hada_w1_b",), "LoKr": ("lokr_w2_b", "lokr_w1_b")}
NAME = "file"  # of the adapter within peft's layers


@dataclass(frozen=True)
class Adapter:
    """What a file adds to the weight and bias of one layer.

    Args:
        shapes: by part, without alpha.
        read: the numbers of a key in float32.
        alpha: the file's; None: the rank, so that the weights are not scaled.
        use_rslora: whether the root of the rank divides alpha.
    """

    layer: AdapterLayer
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    alpha: float | None
    use_rslora: bool
    scale: float

    def check(self, module: nn.Module) -> None:
        """Raises ValueError naming the key that does not fit the module, whose weight may be on the meta device."""
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(
                f"{self._key()} is for a {type(module).__name__}, which is neither linear nor a convolution"
            )
        if "lora_B.bias" in self.shapes and module.bias is None:
            raise ValueError(f"{self._key('lora_B.bias')} is for a layer without a bias")
        peft_layer = self._peft_layer(module)
        expected = {part: tuple(weight.shape) for part, (_, weight) in _weights(peft_layer).items()}
        if missing := sorted(set(expected) - set(self.shapes)):
            raise ValueError(f"{self._key()} lacks its {', '.join(missing)}")
        if unexpected := sorted(set(self.shapes) - set(expected)):
            raise ValueError(f"{self._key(unexpected[0])} cannot be applied next to {self._key()}")
        for part, shape in expected.items():
            if self.shapes[part] != shape and not (part == MAGNITUDE and _is_column(self.shapes[part], shape)):
                hint = " (peft scales the outputs of a layer, not its inputs)" if part == MAGNITUDE else ""
                raise ValueError(f"{self._key(part)} has shape {self.shapes[part]}, the layer needs {shape}{hint}")
        if self._kind == "LoKr":
            self._check_product(module, peft_layer)

    @torch.no_grad()
    def merged(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The module's parameters with this adapter, in float32. Raises ValueError if they are not finite."""
        plain = copy.deepcopy(module).float()
        weights_device = next(plain.parameters()).device
        layer = self._peft_layer(plain)
        weights = {
            name: self.read(self.layer.keys[part]).to(weights_device).reshape(weight.shape)
            for part, (name, weight) in _weights(layer).items()
        }
        layer.load_state_dict(weights, strict=False, assign=True)
        layer.scaling[NAME] *= self.scale
        layer.merge(safe_merge=True)
        return dict(plain.named_parameters())

    @property
    def is_plain(self) -> bool:
        """Whether `product` is all that the adapter adds: no DoRA, LoHa or LoKr, and nothing to a bias."""
        return set(self.shapes) == {"lora_A.weight", "lora_B.weight"}

    def product(self, device: torch.device) -> Tensor:
        """What a plain LoRA adds to the weight: scale x alpha / rank x B A, float32, (out, all other sides as one)."""
        down, up = (self.read(self.layer.keys[f"lora_{part}.weight"]).to(device).flatten(1) for part in "AB")
        rank = down.shape[0]
        alpha = float(rank) if self.alpha is None else self.alpha
        return (up * (self.scale * alpha / (math.sqrt(rank) if self.use_rslora else rank))) @ down

    def _key(self, part: str | None = None) -> str:
        return self.layer.keys[part] if part else min(self.layer.keys.values())

    @property
    def _kind(self) -> str:
        kinds = {KINDS[part[:5]] for part in self.shapes if part != MAGNITUDE}
        if len(kinds) != 1:
            raise ValueError(f"{self._key()} is {' and '.join(sorted(kinds)) or 'a scale without weights'}")
        return kinds.pop()

    def _peft_layer(self, module: nn.Module) -> Any:
        """peft's layer around the module, its own weights on the meta device."""
        rank = next((self.shapes[part][0] for part in RANK_PARTS[self._kind] if self.shapes.get(part)), None)
        if rank == 0 or (rank is None and self._kind != "LoKr"):
            raise ValueError(f"{self._key()} has no {RANK_PARTS[self._kind][0]}, or one of rank 0")
        alpha = 1.0 if rank is None else float(rank) if self.alpha is None else self.alpha
        with init_empty_weights():
            make = self._lora_layer if self._kind == "LoRA" else self._lycoris_layer
            return make(module, rank or 1, alpha)

    def _lora_layer(self, module: nn.Module, rank: int, alpha: float) -> Any:
        config = LoraConfig(
            use_dora=MAGNITUDE in self.shapes,
            lora_bias="lora_B.bias" in self.shapes,
            use_rslora=self.use_rslora,
            init_lora_weights=False,
        )
        return dispatch_default(module, NAME, config, r=rank, lora_alpha=alpha)

    def _lycoris_layer(self, module: nn.Module, rank: int, alpha: float) -> Any:
        kind = self._kind
        model: Any = LoHaModel if kind == "LoHa" else LoKrModel
        layers = [layer for base, layer in model.layers_mapping.items() if isinstance(module, base)]
        if not layers:
            raise ValueError(f"{self._key()} is {kind} for a {type(module).__name__}, which peft cannot apply")
        if MAGNITUDE in self.shapes:
            raise ValueError(f"{self._key(MAGNITUDE)} is DoRA with {kind}, which peft cannot apply")
        config: Any = LoHaConfig if kind == "LoHa" else LoKrConfig
        config = config(init_weights=False, use_effective_conv2d=bool({"hada_t1", "lokr_t2"} & set(self.shapes)))
        layer = layers[0](module, NAME, config=config, r=rank, alpha=alpha)
        if kind == "LoKr":  # peft knows one way to split a layer into two factors; the file says which it has
            for part in layer.adapter_layer_names:
                getattr(layer, part).clear()
            for part, shape in self.shapes.items():
                getattr(layer, part)[NAME] = nn.Parameter(torch.empty(shape))
        return layer

    def _check_product(self, module: Any, peft_layer: Any) -> None:
        """LoKr: the factors are complete, and their Kronecker product has the sides of the weight."""
        for factor in ("lokr_w1", "lokr_w2"):
            tail = {part.removeprefix(factor) for part in self.shapes if part.startswith(factor)}
            if tail not in ({""}, {"_a", "_b"}):
                raise ValueError(f"{self._key()} needs {factor}, or {factor}_a and {factor}_b")
        if "lokr_t2" in self.shapes and "lokr_w2" in self.shapes:
            raise ValueError(f"{self._key('lokr_t2')} cannot be applied next to {self._key('lokr_w2')}")
        rows = (self.shapes.get("lokr_w1") or self.shapes["lokr_w1_a"])[0]
        side = 1 if "lokr_t2" in self.shapes else 0
        rows *= (self.shapes.get("lokr_w2") or self.shapes["lokr_w2_a"])[side]
        try:
            peft_layer.get_delta_weight(NAME)
        except (RuntimeError, IndexError) as e:
            raise ValueError(f"{self._key()}: the factors do not make a weight of {tuple(module.weight.shape)}") from e
        if rows != module.weight.shape[0]:
            raise ValueError(f"{self._key()}: the factors make {rows} outputs, the layer has {module.weight.shape[0]}")


def _weights(layer: Any) -> dict[str, tuple[str, nn.Parameter]]:
    """Name and weight in peft's layer by part."""
    own = ((name, weight) for name, weight in layer.named_parameters() if not name.startswith("base_layer."))
    return {name.replace(f".{NAME}", ""): (name, weight) for name, weight in own}


def _is_column(found: Shape, expected: Shape) -> bool:
    """Whether a shape is LyCORIS' form of peft's magnitudes: (out, 1) or (out, 1, 1, 1), one per output."""
    return math.prod(found) == math.prod(expected) == next(iter(found), 0)
