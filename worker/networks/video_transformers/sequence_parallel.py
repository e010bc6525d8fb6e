"""Sequence parallelism of Wan's transformers: several ranks compute one call, each a part of the tokens.

Ulysses' way (arXiv:2309.14509): between the layers each rank has some tokens of all heads, in attention all tokens of
some heads.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from worker.networks.network_classes import Network

# after network_classes, which switches the hub client offline
from diffusers import ContextParallelConfig, ParallelConfig  # isort: skip
from diffusers.hooks.context_parallel import apply_context_parallel  # isort: skip


def split_sequences(networks: Iterable[Network], ranks: int, device: torch.device) -> None:
    """From now on each `ranks` ranks in a row, of all in the process group, must call these networks together.

    What diffusers' `enable_parallelism` does, which counts accelerators and so fails where there is only a CPU.
    """
    # It warns of every time that is one number for all tokens, which is not to be split.
    logging.getLogger("diffusers.hooks.context_parallel").setLevel(logging.ERROR)
    rank, total = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(device.type, (total // ranks, 1, ranks), mesh_dim_names=("unit", "ring", "ulysses"))
    # Any number of tokens and heads, whether or not the ranks divide it.
    ulysses = ContextParallelConfig(ulysses_degree=ranks, ulysses_anything=True, mesh=mesh["ring", "ulysses"])
    config = ParallelConfig(context_parallel_config=ulysses)
    config.setup(rank, total, device, mesh=ulysses.mesh)
    for network in networks:
        for module in network.modules():
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_parallel_config"):
                processor._parallel_config = config
        apply_context_parallel(network, ulysses, network._cp_plan)
