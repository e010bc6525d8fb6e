"""LoRA files in the layouts of their trainers, for layers of tiny networks, and what each adds to a weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor

RANK = 2
Weights = dict[str, Tensor]  # of a network, by the name of the layer


class Numbers:
    """Random tensors of one seed."""

    def __init__(self, seed: int = 1) -> None:
        self._generator = Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=self._generator)


def layer_weights(network: Any, names: Iterable[str]) -> Weights:
    return {name: network.get_submodule(name).weight for name in names}


def lora(weight: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(down, up) of a linear layer or convolution."""
    ones = (1,) * (weight.ndim - 2)
    return numbers(RANK, *weight.shape[1:]), numbers(weight.shape[0], RANK, *ones)


def product(down: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def kohya(prefix: str, weights: Weights, numbers: Numbers, alpha: float = 1.0, dora: bool = False) -> Weights:
    """kohya's trainer, and LyCORIS' LoCon and DoRA: one scale per output, as its own norm times up to 1.5."""
    file: Weights = {}
    for name, weight in weights.items():
        stem = f"{prefix}_{name.replace('.', '_')}"
        file[f"{stem}.lora_down.weight"], file[f"{stem}.lora_up.weight"] = lora(weight, numbers)
        file[f"{stem}.alpha"] = torch.tensor(alpha)
        if dora:
            norm = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
            file[f"{stem}.dora_scale"] = norm * (1 + numbers(*norm.shape).abs())
    return file


def dotted(prefix: str, weights: Weights, numbers: Numbers, down: str, up: str) -> Weights:
    """diffusers and peft: `down` and `up` follow the layer's name."""
    file: Weights = {}
    for name, weight in weights.items():
        pair = lora(weight, numbers)
        file |= {f"{prefix}{name}{end}": tensor for end, tensor in zip((down, up), pair, strict=True)}
    return file


def old_diffusers(prefix: str, weights: Weights, numbers: Numbers) -> Weights:
    """The attention processors of diffusers 0.1x, and AnimateDiff's motion LoRAs."""
    file: Weights = {}
    for name, weight in weights.items():
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        stem = f"{prefix}{attention}.processor.{projection}_lora"
        file[f"{stem}.down.weight"], file[f"{stem}.up.weight"] = lora(weight, numbers)
    return file


def original_motion(file: Weights) -> Weights:
    """The names of AnimateDiff's own code instead of diffusers'."""
    return {
        name.removeprefix("unet.")
        .replace(".transformer_blocks", ".temporal_transformer.transformer_blocks")
        .replace(".attn1", ".attention_blocks.0")
        .replace(".attn2", ".attention_blocks.1"): value
        for name, value in file.items()
    }


def loha(prefix: str, weights: Weights, numbers: Numbers, tucker: bool = False) -> tuple[Weights, Weights]:
    """(file, what it adds to each weight)."""
    file, added = {}, {}
    for name, weight in weights.items():
        out, inside, *kernel = weight.shape
        parts: Weights = {}
        for w in ("w1", "w2"):
            if tucker and max(kernel, default=1) > 1:
                parts |= {f"{w}_a": numbers(RANK, out), f"{w}_b": numbers(RANK, inside)}
                parts[w.replace("w", "t")] = numbers(RANK, RANK, *kernel)
            else:
                parts |= {f"{w}_a": numbers(out, RANK), f"{w}_b": numbers(RANK, weight[0].numel())}
        factors = [_factor(parts, w, parts.get(w.replace("w", "t"))) for w in ("w1", "w2")]
        added[name] = (factors[0] * factors[1]).reshape(weight.shape) * (1.0 / RANK)
        stem = f"{prefix}_{name.replace('.', '_')}"
        file |= {f"{stem}.hada_{part}": value for part, value in parts.items()} | {f"{stem}.alpha": torch.tensor(1.0)}
    return file, added


def _factor(parts: Weights, w: str, core: Tensor | None) -> Tensor:
    if core is None:
        return parts[f"{w}_a"] @ parts[f"{w}_b"]
    return torch.einsum("ijkl,ip,jr->prkl", core, parts[f"{w}_a"], parts[f"{w}_b"])


def lokr(
    prefix: str, weights: Weights, numbers: Numbers, split: int = 4, whole: bool = False
) -> tuple[Weights, Weights]:
    """(file, what it adds). The first factor is (split, split/2) and whole, the second whole or of RANK."""
    file, added = {}, {}
    for name, weight in weights.items():
        out, inside, *kernel = weight.shape
        w1 = numbers(split, split // 2)
        rest = (out // split, inside // (split // 2), *kernel)
        stem = f"{prefix}_{name.replace('.', '_')}"
        file |= {f"{stem}.lokr_w1": w1, f"{stem}.alpha": torch.tensor(1.0)}
        if whole:
            w2, scale = numbers(*rest), 1.0  # LyCORIS does not scale whole factors
            file[f"{stem}.lokr_w2"] = w2
        else:
            a, b = numbers(rest[0], RANK), numbers(RANK, weight[0].numel() // (split // 2))
            w2, scale = a @ b, 1.0 / RANK
            file |= {f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
        added[name] = scale * torch.kron(w1, w2.flatten(1)).reshape(weight.shape)
    return file, added
