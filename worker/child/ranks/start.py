"""Which devices the ranks of a worker have; refuses what cannot work before anything is loaded."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import os

import torch

from service.catalog.family_components import COGVIDEOX, WAN
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.settings import LogFormat
from worker.child.ranks.leader import Ranks
from worker.messages import Processes


def start_ranks(entry: ModelEntry, processes: Processes, log_format: LogFormat) -> Ranks:
    """Raises ConfigurationError if the machine has too few GPUs, or the model cannot be split so."""
    return Ranks(devices_of(processes), per_unit=ranks_per_unit(entry, processes.count), log_format=log_format)


def devices_of(processes: Processes) -> list[torch.device]:
    """Raises ConfigurationError if there are not so many GPUs."""
    count = processes.count
    if processes.on_cpu:
        return [torch.device("cpu")] * count
    if (found := torch.cuda.device_count()) < count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        where = "on this machine" if visible is None else f"with CUDA_VISIBLE_DEVICES={visible}"
        raise ConfigurationError(
            f"--gpus {count}: torch finds {found or 'no'} GPU{'s' if found > 1 else ''} {where}; name fewer, or start "
            "one worker per GPU (--cpu-processes splits clips over processes where there is no GPU)"
        )
    return [torch.device("cuda", index) for index in range(count)]


def ranks_per_unit(entry: ModelEntry, ranks: int) -> int:
    """How many ranks compute one call together: 4 ranks are two for each branch of guidance, where the network can
    split a clip. Raises ConfigurationError if half of 4 ranks would be idle."""
    if ranks < 4 or entry.family not in (WAN, COGVIDEOX):
        return 1
    if entry.family == COGVIDEOX:
        raise ConfigurationError(f"model {entry.id}: CogVideoX can be split over 2 processes, not {ranks}")
    if (entry.optimise and entry.optimise.compile) or entry.memory.group_offload:
        raise ConfigurationError(
            f"model {entry.id}: with optimise.compile or memory.group_offload a clip can be split over 2 processes, "
            f"not {ranks}; take 2, or remove the setting"
        )
    return ranks // 2
