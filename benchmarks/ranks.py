"""`python -m benchmarks.ranks`: one process against several that compute each clip together (`ivmix worker --gpus`).

On the CPU, one thread each; rounds of the arms alternate. Two clips: the model's default, in the demo's of which half
of the calls have one branch of guidance, and one that is guided in every call. The demo's networks draw an eighth of
`--size`; those of `--model full-size` have the random weights of Stable Diffusion 1.5 and AnimateDiff, and draw small
pictures: 3 GB on disk and 15 GB of memory.

Prints for each arm the fastest and the median seconds of sampling, the CPU seconds of the busiest process, and what one
process takes divided by both; also the largest difference between the latents, relative to the largest. Writes JSON
with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.full_size_model import save_full_size_model
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import SamplerSettings
from service.settings import MODELS_FILE
from worker.child.engine import Engine
from worker.child.ranks.leader import Ranks
from worker.child.ranks.one_process import OneProcess

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
    parser.add_argument("--model", default="demo", choices=("demo", "full-size"))
    parser.add_argument("--processes", type=int, default=2, choices=(2, 4))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    parser.add_argument("--frames", type=int, help="likewise")
    parser.add_argument("--size", help="likewise, WIDTHxHEIGHT, also one that the model's entry does not offer")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = MODELS_FILE if arguments.model == "demo" else save_full_size_model(Path(folder))
        entry = _benchmarked(ModelRegistry.load(file).get(arguments.model), arguments.size)
        found = _measured(
            entry, _clips(entry, arguments.steps, arguments.frames), arguments.rounds, arguments.processes
        )
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


def _benchmarked(entry: ModelEntry, size: str | None) -> ModelEntry:
    """The entry with one thread, for clips of any length and cost."""
    return entry.model_copy(update={"cpu_threads": 1, "max_cost": None, "sizes": (size,) if size else entry.sizes})


def _measured(entry: ModelEntry, clips: dict[str, Generation], rounds: int, count: int) -> dict[str, tuple[Arm, Arm]]:
    """By clip, of one process and of several."""
    found = {name: (Arm(), Arm()) for name in clips}
    with Ranks([CPU] * count) as ranks:
        together, processes = Engine(entry, ranks), [os.getpid(), *ranks.pids]
        alone = copy(together)  # with the same weights
        alone._processes = OneProcess(CPU)
        for engine in (alone, together):
            engine.warm_up(next(iter(clips.values())))
        for _ in range(rounds):
            for name, clip in clips.items():
                one, several = found[name]
                one.run(alone, clip, processes[:1])
                several.run(together, clip, processes)
    return found


def _clips(entry: ModelEntry, steps: int | None, frames: int | None) -> dict[str, Generation]:
    default = entry.resolve(VideoRequest(prompt=PROMPT, seed=7, num_inference_steps=steps, num_frames=frames))
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
