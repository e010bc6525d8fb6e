"""Settings that make small networks fast on a CPU worker.

Measured 2026-11 on two Zen 3 cores with the demo pair, guided calls of one clip: 48 -> 43 ms (image), 103 -> 80 ms
(video). Results differ by float32 rounding only.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from worker.networks.optimise.weight_memory import channels_last

# From glibc's malloc.h; other C libraries have no mallopt or ignore these.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MAX_FREE_BYTES = 512 * 2**20  # free memory that the process keeps instead of returning it to the kernel
MAX_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more


def tune_process(threads: int | None) -> None:
    """Set torch's number of threads (None: unchanged), and keep malloc from returning every activation to the kernel.

    By default glibc maps each tensor above 128 KiB anew, and the kernel zeroes its pages at every operation.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, MAX_FREE_BYTES)
        mallopt(M_TOP_PAD, MAX_MMAP_THRESHOLD)


def tune_network(unet: Any) -> None:  # Any: diffusers' UNets share no type
    """Channels-last weights, which spare convolutions a copy, and attention as two matrix products.

    The CPU's flash attention kernel takes twice as long on short sequences.
    """
    unet.set_attn_processor(AttnProcessor())
    channels_last(unet)
