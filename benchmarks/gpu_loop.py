"""`python -m benchmarks.gpu_loop`: seconds per clip of the released loop and of ours, relative to the card's peak.

One process, full-size networks with random weights (SD 1.5 with a motion adapter; or --family modelscope), 16 frames of
512x512, 50 steps, half precision. It measures the peak rates, checks that all arms compute the same, then times the
arms, interleaved A B B A:
  A    the released loop on diffusers' networks, eager     B    our sampler and optimised networks, exact
  A'   the same, compiled whole, channels_last             B'   the same with compiled blocks, channels_last
--seconds limits the run (480 suit an H200): after 60 % of them no further timing round starts.
--family wan compares with diffusers' WanPipeline instead, see gpu_wan.py.
--smoke runs the same steps with tiny networks, on a CPU too and without code generation; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks import gpu_measure, gpu_wan
from benchmarks.gpu_arms import ARMS, Arm
from benchmarks.gpu_networks import STEPS, Family, flops, pair
from benchmarks.peak_rates import matrix_roof, roofs

TIMED, ROUNDS = 10, 3  # outer steps of a turn; rounds of two turns for every arm
SMOKE_STEPS, SMOKE_TIMED, SMOKE_ROUNDS = 4, 1, 1
TIMING_SHARE = 0.6  # of --seconds; whole clips and profiles need the rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--family", choices=("animatediff", "modelscope", "wan"), default="animatediff")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="A always runs")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.smoke:
        parser.error("full size needs a CUDA device; --smoke runs on a CPU")
    if arguments.smoke:
        torch.set_num_threads(1)  # the tensors are too small for a second thread
    names = [name for name in ARMS if name == "A" or name in arguments.arms]
    if arguments.family == "wan":
        result = gpu_wan.measure(device, names, seconds=arguments.seconds, smoke=arguments.smoke)
        gpu_wan.report(result)
    else:
        result = measure(arguments.family, device, names, seconds=arguments.seconds, smoke=arguments.smoke)
        report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


@torch.no_grad()
def measure(family: Family, device: torch.device, names: list[str], *, seconds: float, smoke: bool) -> dict[str, Any]:
    began, size = time.monotonic(), "tiny" if smoke else "full"
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    steps, timed, rounds = (SMOKE_STEPS, SMOKE_TIMED, SMOKE_ROUNDS) if smoke else (STEPS, TIMED, ROUNDS)
    roof = roofs(device, dtype, small=smoke)
    networks = pair(family, size, device, dtype)
    arms = [ARMS[name](networks, "eager" if smoke else "inductor") for name in names]
    for arm in arms:
        arm.results["first_step_s"] = gpu_measure.first_step_s(arm, device)
    for name, errors in gpu_measure.gate(networks, arms).items():
        next(arm for arm in arms if arm.name == name).results["relative_error"] = errors
    turns = 0
    while turns < 2 * rounds and (not turns or time.monotonic() - began < TIMING_SHARE * seconds):
        for arm in (*arms, *reversed(arms)):
            arm.steps_s += gpu_measure.step_seconds(arm.run(STEPS), timed, device)
        turns += 2
    work = flops(family, size, steps)
    for arm in arms:
        arm.results |= gpu_measure.whole_clip(arm, networks, steps, device)
        arm.results |= gpu_measure.one_step(arm, device)
        _conclude(arm, work, matrix_roof(roof, dtype))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "diffusers": diffusers.__version__},
        "family": family,
        "smoke": smoke,
        "dtype": str(dtype).removeprefix("torch."),
        "steps": steps,
        "turns": turns,
        "tflop_per_clip": work / 1e12,
        "gate": "passed",  # otherwise there is no result
        "roofs": roof,
        "ratios": _ratios(arms),
        "arms": {arm.name: {"what": arm.what, **arm.results} for arm in arms},
        "wall_s": time.monotonic() - began,
    }


def _conclude(arm: Arm, work: float, roof_tflops: float) -> None:
    median = statistics.median(arm.steps_s)
    arm.results["step_s"] = {"median": median, "fastest": min(arm.steps_s), "count": len(arm.steps_s)}
    arm.results["compile_s"] = max(0.0, arm.results["first_step_s"] - median)
    arm.results["tflops"] = work / arm.results["clip_s"] / 1e12
    arm.results["of_roof"] = arm.results["tflops"] / roof_tflops
    if arm.compiler is not None:
        arm.results["fell_back_to_eager"] = arm.compiler.has_failed


def _ratios(arms: list[Arm]) -> dict[str, dict[str, float]]:
    """Time of the first arm divided by that of the second: of an outer step (medians) and of a whole clip."""
    return {
        f"{slow.name}/{fast.name}": {
            "step": slow.results["step_s"]["median"] / fast.results["step_s"]["median"],
            "clip": slow.results["clip_s"] / fast.results["clip_s"],
        }
        for index, slow in enumerate(arms)
        for fast in arms[index + 1 :]
    }


def report(result: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    print(f"{result['device']}, {versions}, {result['family']}, {result['dtype']}")
    print(f"{result['tflop_per_clip']:.4g} TFLOP a clip of {result['steps']} steps, {result['wall_s']:.0f} s in all")
    if result["smoke"]:
        print("SMOKE: tiny networks, few steps; the figures mean nothing")
    for name, value in result["roofs"].items():
        print(f"  roof {name:<28}{value:>10.4g}")
    columns = ("clip s", "step ms", "TFLOP/s", "of roof", "error", "waits/step", "kernels/call", "compile s", "peak GB")
    print(f"{'arm':<4}" + "".join(f"{column:>13}" for column in columns))
    for name, found in result["arms"].items():
        cells = (
            f"{found['clip_s']:.2f}",
            f"{1e3 * found['step_s']['median']:.1f}",
            f"{found['tflops']:.4g}",
            f"{found['of_roof']:.1%}",
            f"{max(found['relative_error'].values()):.1e}",
            f"{found['host_waits_per_step']}",
            f"{found['kernels_per_call']:.0f}",
            f"{found['compile_s']:.1f}",
            f"{found['peak_gb']:.2f}" if "peak_gb" in found else "-",
        )
        print(f"{name:<4}" + "".join(f"{cell:>13}" for cell in cells))
    for name, ratio in result["ratios"].items():
        print(f"  {name:<6} {ratio['step']:.2f} a step, {ratio['clip']:.2f} a clip")
    for name, found in result["arms"].items():
        kinds = ", ".join(f"{kind} {ms:.3g}" for kind, ms in found["kernel_ms"].items())
        fallen = "; NOT COMPILED, see the log" if found.get("fell_back_to_eager") else ""
        print(f"  {name}, {found['what']}{fallen}: ms of one step: {kinds}")


if __name__ == "__main__":
    main()
