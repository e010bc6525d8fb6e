"""The process group of the ranks: NCCL between GPUs, gloo between processes on a CPU."""

# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false
from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=5)  # of one transfer; the parent replaces a child that stalls, sooner or later than that


def join(rank: int, ranks: int, device: torch.device, store: int) -> None:
    """Meet the other ranks, the first time.

    Args:
        store: a descriptor that all of them have inherited, of a file without a name: no other process can join, and
            nothing stays behind.
    """
    if dist.is_initialized():
        return
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # all ranks are on this machine
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.FileStore(f"/proc/self/fd/{store}", ranks),
        rank=rank,
        world_size=ranks,
        timeout=TIMEOUT,
        device_id=device if on_gpu else None,
    )


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
