"""The two guidance halves of a call are the same numbers until they first see their texts: so far, one is computed.

That is the first convolution, the first residual block, and the first transformer up to its self-attention, in 3D
networks also what mixes the frames before it: 2 to 3 % of a network. Results differ by rounding only.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from worker.networks.optimise.call import Call


def compute_halves_once(unet: Any, call: Call) -> None:
    """Each of those modules takes the first half of its rows, and gives what it returns twice."""

    def halve(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not call.has_twins:
            return None
        return tuple(_first(value) for value in args), {name: _first(value) for name, value in kwargs.items()}

    def repeat(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not call.has_twins:
            return None
        return _twice(output) if isinstance(output, Tensor) else tuple(_twice(value) for value in output)

    for module in before_text(unet):
        module.register_forward_pre_hook(halve, with_kwargs=True)
        module.register_forward_hook(repeat)


def before_text(unet: Any) -> Iterator[nn.Module]:
    """In the order they are run."""
    yield unet.conv_in
    if hasattr(unet, "transformer_in"):
        yield unet.transformer_in
    block = unet.down_blocks[0]
    yield block.resnets[0]
    if hasattr(block, "temp_convs"):
        yield block.temp_convs[0]
    if not getattr(block, "has_cross_attention", False):
        return
    attention = block.attentions[0]
    first = attention.transformer_blocks[0]
    yield from (attention.norm, attention.proj_in)
    if not first.only_cross_attention:
        yield from (first.norm1, first.attn1)


def _first(value: Any) -> Any:
    return value[: len(value) // 2] if isinstance(value, Tensor) else value


def _twice(value: Tensor) -> Tensor:
    return torch.cat((value, value))
