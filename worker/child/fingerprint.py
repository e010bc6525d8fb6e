"""What a checkpoint is the state of, in one line: only a run that would have come by that state may go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sampler import Plan
from service.jobs.model import Generation


def of_run(networks: str, generation: Generation, plan: Plan) -> str:
    """`networks`: of_networks. The card's name is left out: another one of the fleet may go on."""
    parts = ("2", torch.__version__, networks, generation.model_dump_json(), repr(plan))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@torch.no_grad()
def of_networks(models: Any) -> str:  # Any: a loader's result, whatever its family holds
    """Of every network that `models` holds, directly or in one of its parts: a few numbers of each weight.

    Training changes all of them; reading them whole would cost seconds at every start.
    """
    digest = hashlib.sha256()
    for network in _networks(models):
        digest.update(type(network).__name__.encode())
        for name, x in network.state_dict().items():
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        corners = [x[(end,) * x.ndim].double() for x in network.parameters() if x.numel() for end in (0, -1)]
        digest.update(torch.stack(corners).cpu().numpy().tobytes())
    return digest.hexdigest()


def _networks(models: Any) -> Iterator[nn.Module]:
    for part in _parts(models):
        if isinstance(part, nn.Module):
            yield part
        else:
            yield from (inner for inner in _parts(part) if isinstance(inner, nn.Module))


def _parts(whole: Any) -> list[Any]:
    return [getattr(whole, name) for name in getattr(whole, "__dict__", ())]
