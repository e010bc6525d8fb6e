"""`python -m benchmarks.ranks`: one process against several that compute each clip together (`ivmix worker --gpus`).

On the CPU, one thread each, with the demo models; rounds of the arms alternate. Prints for each arm the fastest and the
median seconds of sampling, the CPU seconds of the busiest process, which other programs do not change, and what one
process takes divided by both; also the largest difference between the latents. Writes JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
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
    generation = entry.resolve(VideoRequest(prompt=PROMPT, seed=7, num_inference_steps=arguments.steps))
    one, several = Arm(), Arm()
    alone = Engine(entry, CPU)
    with Ranks([CPU] * arguments.processes) as ranks:
        together, processes = Engine(entry, ranks), [os.getpid(), *ranks.pids]
        for engine in (alone, together):
            engine.warm_up(generation)
        for _ in range(arguments.rounds):
            one.run(alone, generation, processes[:1])
            several.run(together, generation, processes)
    difference = _difference(one, several)
    _print(arguments.processes, one, several, difference)
    if arguments.json:
        result = {name: asdict(arm) | {"latents": None} for name, arm in (("one", one), ("several", several))}
        arguments.json.write_text(json.dumps({**result, "difference": difference}, indent=1))


def _print(count: int, one: Arm, several: Arm, difference: float) -> None:
    print(f"{platform.machine()}, torch {torch.__version__}, one thread per process, {len(one.seconds)} rounds")
    print(f"{'arm':<14}{'fastest s':>11}{'median s':>10}{'CPU s':>8}{'x faster':>10}{'x less CPU':>12}")
    for name, arm in (("1 process", one), (f"{count} processes", several)):
        fastest, cpu = min(arm.seconds), min(arm.cpu_seconds)
        faster, less = min(one.seconds) / fastest, min(one.cpu_seconds) / cpu
        print(
            f"{name:<14}{fastest:>11.2f}{statistics.median(arm.seconds):>10.2f}{cpu:>8.2f}{faster:>10.2f}{less:>12.2f}"
        )
    print(f"largest difference of the latents, relative to the largest: {difference:.1g}")
    if count == 2:
        print(f"goal: at least {GOAL} times as fast")


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
