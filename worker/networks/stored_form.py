"""How a network's weights are stored in files and in memory: names that mean one tensor, and parts in float32."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from typing import cast as cast_type

import torch

from worker.networks.network_classes import Network

Weight = TypeVar("Weight")


def tied_weights(network: Network) -> dict[str, str]:
    """The weight that each further name means, as transformers lists them; diffusers' networks have none."""
    tied: Any = getattr(network, "_tied_weights_keys", None)
    return cast_type("dict[str, str]", tied) if isinstance(tied, dict) else {}


def without_aliases(network: Network, stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """Stored weights, each by one name: files hold tied weights once, under either name, or twice."""
    found, tied = dict(stored), tied_weights(network)
    for alias, name in tied.items():
        if alias in found:
            found.setdefault(name, found[alias])
            del found[alias]
    return found


def dtype_of(network: Network, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight where the network runs in `dtype`.

    diffusers' transformers keep their time embedding, norms and modulation in float32, which bfloat16 is too coarse
    for. transformers' T5 keeps what overflows in float16.
    """
    kept: Any = getattr(network, "_keep_in_fp32_modules", None)
    is_kept = kept and (dtype is torch.float16 or hasattr(network, "_repeated_blocks"))
    return torch.float32 if is_kept and set(kept) & set(name.split(".")) else dtype


def cast(network: Network, dtype: torch.dtype) -> None:
    """Give every parameter and buffer its dtype, in place."""
    for tensors in (network.named_parameters(), network.named_buffers()):
        for name, tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype_of(network, name, dtype))
