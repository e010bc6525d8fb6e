"""Measurements of one arm of `gpu_loop`: error, step times, a whole clip, kernels, host-device syncs."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_arms import Arm, exact
from benchmarks.gpu_networks import CALLS, STEPS, Pair
from benchmarks.peak_rates import wait
from worker.networks.optimise import vae_decode

WARM_UP, GATE_STEPS = 2, 3
GATE = 1.2  # times arm A's error against float32
FLOOR = 1e-5  # relative; allowed even if A is float32 itself, for different rounding
SOUND = (0.1, 10.0)  # standard deviation of the latents after every step
# Kinds of kernels (on a CPU: operators) by the first match in their name.
KINDS = (
    ("attention", r"attention|flash|fmha|sdpa|softmax|bmm"),
    ("convolution", r"conv|fprop|implicit|im2col"),
    ("matrix product", r"gemm|addmm|::mm|nvjet|cutlass|linear|matmul"),
    ("norm", r"norm"),
    ("copy", r"copy|cat|memcpy|memset|clone"),
    ("pointwise", r"elementwise|triton|silu|gelu|mul|add|div|sub"),
)


class Unsound(SystemExit):
    """An arm computes something else than the reference, so timing it would mean nothing."""


@torch.no_grad()
def gate(networks: Pair, arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Relative L2 distances to float32 by arm: of one call of each network, and after three outer steps.

    Raises Unsound if an arm's distance is more than 1.2 times that of the first arm, which is the released loop.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    expected = _answers(exact(networks), networks.latents, torch.float32)
    errors: dict[str, dict[str, float]] = {}
    for arm in arms:
        found = _answers(arm, networks.latents, networks.dtype)
        errors[arm.name] = {name: _distance(found[name], expected[name]) for name in expected}
    first, *others = errors
    for name in others:
        for what, error in errors[name].items():
            if not error <= (allowed := max(GATE * errors[first][what], FLOOR)):
                raise Unsound(f"arm {name}, {what}: {error:.2e} from float32; {first}'s rounding allows {allowed:.2e}")
    return errors


def _answers(arm: Arm, latents: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    both = torch.cat([latents, latents]).to(dtype)
    found = {f"{name} call": call(both).float() for name, call in arm.calls.items()}
    *_, last = check_sound(arm, islice(arm.run(STEPS), GATE_STEPS))
    return found | {f"{GATE_STEPS} steps": last.float()}


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check_sound(arm: Arm, run: Iterator[Tensor]) -> list[Tensor]:
    """The latents after every step, checked after the run: a check in between would make the loop wait."""
    made = list(run)
    for index, latents in enumerate(made):
        spread = float(latents.float().std())
        if not SOUND[0] < spread < SOUND[1]:  # and not NaN
            raise Unsound(f"arm {arm.name}: after step {index} the latents' standard deviation is {spread:.3g}")
    return made


def first_step_s(arm: Arm, device: torch.device) -> float:
    """Seconds of the very first step, including compilation, kernel selection and caches."""
    wait(device)
    began = time.perf_counter()
    next(arm.run(STEPS))
    wait(device)
    return time.perf_counter() - began


def step_seconds(run: Iterator[Tensor], count: int, device: torch.device) -> list[float]:
    """Seconds of each of `count` steps after the warm-up; on a GPU measured by CUDA events."""
    list(islice(run, WARM_UP))
    if device.type == "cpu":
        marks = [time.perf_counter(), *(time.perf_counter() for _ in islice(run, count))]
        return [after - before for before, after in pairwise(marks)]
    events = [_mark(), *(_mark() for _ in islice(run, count))]
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def whole_clip(arm: Arm, networks: Pair, steps: int, device: torch.device) -> dict[str, float]:
    """Wall time of a whole run, from noise to pixels on the host, and its memory."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    wait(device)
    began = time.perf_counter()
    made = list(arm.run(steps))  # latents are small
    vae_decode.decode(networks.vae, made[-1])
    found = {"clip_s": time.perf_counter() - began, "weights_gb": arm.weights_bytes / 1e9}
    if on_gpu:
        found["peak_gb"] = (torch.cuda.max_memory_allocated(device) - before + arm.weights_bytes) / 1e9
    check_sound(arm, iter(made))
    return found


def one_step(arm: Arm, device: torch.device) -> dict[str, Any]:
    """Profile of one outer step within a run: milliseconds by kind of kernel, launches, host-device syncs."""
    run, on_gpu = _warm(arm), device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        next(run)
        wait(device)
    kinds, launches, asked = Counter[str](), 0, 0
    for event in seen.key_averages():
        asked += event.count * (event.key == "aten::_local_scalar_dense")
        spent_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if not spent_us or (on_gpu and event.device_type != torch.autograd.DeviceType.CUDA):
            continue
        kinds[next((kind for kind, names in KINDS if re.search(names, event.key, re.IGNORECASE)), "other")] += spent_us
        launches += event.count
    return {
        "kernel_ms": {kind: spent_us / 1000 for kind, spent_us in kinds.most_common()},
        "kernels_per_call": launches / sum(CALLS.values()),
        # On a CPU: how often a tensor is read as a Python number, each of which would be a sync on a GPU.
        "host_waits_per_step": _waits(arm) if on_gpu else asked,
    }


def _waits(arm: Arm) -> int:
    """Host-device syncs of one step, counted by torch's own warnings."""
    run = _warm(arm)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _warm(arm: Arm) -> Iterator[Tensor]:
    run = arm.run(STEPS)
    list(islice(run, WARM_UP))
    return run
