"""Measured peak rates of a device: matrix product, convolution, attention and copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = {"matrix": 8192, "channels": 320, "side": 64, "images": 32, "heads": 8, "copied_bytes": 2**30}
SMALL = {"matrix": 128, "channels": 16, "side": 8, "images": 2, "heads": 2, "copied_bytes": 2**16}
HEAD_WIDTH = 40  # of Stable Diffusion's first level


def roofs(device: torch.device, dtype: torch.dtype, *, small: bool) -> dict[str, float]:
    """TFLOP/s, and GB/s read and written. Measured on random numbers: zeros draw less power and give too high rates."""
    size = SMALL if small else LARGE
    n, c, side, images, heads = (size[name] for name in ("matrix", "channels", "side", "images", "heads"))

    def noise(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x = noise(images, c, side, side).contiguous(memory_format=torch.channels_last)
    w = noise(c, c, 3, 3).contiguous(memory_format=torch.channels_last)
    q, k, v = (noise(images, heads, side**2, HEAD_WIDTH) for _ in range(3))
    source = noise(size["copied_bytes"] // x.element_size())
    target = torch.empty_like(source)
    work: dict[str, tuple[float, Callable[[], object]]] = {}
    for other in sorted({dtype, torch.bfloat16}, key=str):
        a, b = noise(n, n, dtype=other), noise(n, n, dtype=other)
        work[f"matrix_{_name(other)}_tflops"] = 2 * n**3 / 1e12, lambda a=a, b=b: a @ b
    work["convolution_tflops"] = 2 * 9 * c**2 * images * side**2 / 1e12, lambda: F.conv2d(x, w, padding=1)
    work["attention_tflops"] = (
        4 * images * heads * side**4 * HEAD_WIDTH / 1e12,
        lambda: F.scaled_dot_product_attention(q, k, v),
    )
    work["copy_gb_per_s"] = 2 * source.nbytes / 1e9, lambda: target.copy_(source)
    return {name: amount / seconds(run, device) for name, (amount, run) in work.items()}


def matrix_roof(measured: dict[str, Any], dtype: torch.dtype) -> float:
    """The TFLOP/s that count as 100 %."""
    return measured[f"matrix_{_name(dtype)}_tflops"]


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 5, times: int = 10) -> float:
    """Seconds of one run, from the fastest of `rounds` rounds of `times` runs."""
    work()
    best = float("inf")
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait(device)
        best = min(best, (time.perf_counter() - began) / times)
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
