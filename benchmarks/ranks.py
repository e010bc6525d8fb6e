"""`python -m benchmarks.ranks`: one process against several that compute each clip together (`ivmix worker --gpus`).

On the CPU, one thread each, with the demo models; rounds of the arms alternate. Two clips: the demo's default, half of
whose calls have one branch of guidance, and one that is guided in every call. Prints for each arm the fastest and the
median seconds of sampling, the CPU seconds of the busiest process, and what one process takes divided by both; also the
largest difference between the latents, relative to the largest. Writes JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import SamplerSettings
from worker.child.engine import Engine
from worker.child.ranks.leader import Ranks

PROMPT = "a red circle moving right on a teal background"
GOAL = 1.6  # times as fast with two processes
CPU = torch.device("cpu")


@dataclass
class Arm:
    """Seconds of each round."""

    seconds: list[float] = field(default_factory=list[float])
    cpu_seconds: list[float] = field(default_factory=list[float])
    latents: Tensor | None = None

    def run(self, engine: Engine, generation: Generation, processes: list[int]) -> None:
        """One clip. `processes`: all that work on it."""
        before, began = [_cpu_seconds(pid) for pid in processes], time.perf_counter()
        self.latents = engine.sample(generation).latents
        self.seconds.append(time.perf_counter() - began)
        used = (_cpu_seconds(pid) - was for pid, was in zip(processes, before, strict=True))
        self.cpu_seconds.append(max(used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, choices=(2, 4))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    entry = ModelRegistry.load().get("demo").model_copy(update={"cpu_threads": 1})
    clips = _clips(entry, arguments.steps)
    found = {name: (Arm(), Arm()) for name in clips}
    alone = Engine(entry, CPU)
    with Ranks([CPU] * arguments.processes) as ranks:
        together, processes = Engine(entry, ranks), [os.getpid(), *ranks.pids]
        for engine in (alone, together):
            engine.warm_up(next(iter(clips.values())))
        for _ in range(arguments.rounds):
            for name, clip in clips.items():
                one, several = found[name]
                one.run(alone, clip, processes[:1])
                several.run(together, clip, processes)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread per process, {arguments.rounds} rounds")
    times = f"{'fastest s':>11}{'median s':>10}{'CPU s':>7}{'faster':>8}{'less CPU':>10}"
    print(f"{'clip':<9}{'processes':>10}{times}{'differ':>9}")
    for name, (one, several) in found.items():
        _print(name, 1, one, one)
        _print(name, arguments.processes, several, one)
    print(f"goal: two processes at least {GOAL} times as fast, guided")
    if arguments.json:
        rows = {name: [vars(arm) | {"latents": None} for arm in arms] for name, arms in found.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))


def _clips(entry: ModelEntry, steps: int | None) -> dict[str, Generation]:
    default = entry.resolve(VideoRequest(prompt=PROMPT, seed=7, num_inference_steps=steps))
    return {"default": default, "guided": default.model_copy(update={"sampler": SamplerSettings()})}


def _print(name: str, processes: int, arm: Arm, one: Arm) -> None:
    fastest, median, cpu = min(arm.seconds), statistics.median(arm.seconds), min(arm.cpu_seconds)
    faster, less = min(one.seconds) / fastest, min(one.cpu_seconds) / cpu
    times = f"{fastest:>11.2f}{median:>10.2f}{cpu:>7.2f}{faster:>8.2f}{less:>10.2f}"
    print(f"{name:<9}{processes:>10}{times}{_difference(one, arm):>9.1g}")


def _difference(one: Arm, several: Arm) -> float:
    assert one.latents is not None
    assert several.latents is not None
    return float((one.latents - several.latents).abs().max() / one.latents.abs().max())


def _cpu_seconds(pid: int) -> float:
    """Of a process, in user and kernel mode; fields 14 and 15 of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
