"""`python -m benchmarks.previews`: what previews take from the sampling of the demo model, and that they change no bit.

Runs with and without previews take turns. The share is what the worker accounts: seconds spent on previews, of the
seconds of sampling, which it keeps at or below 2 %.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation, Phase
from service.jobs.request import VideoRequest
from worker.child.engine import Engine
from worker.child.previews import Previews

PROMPT = "a red circle moving right on a teal background"


@dataclass(frozen=True)
class Run:
    latents: Tensor
    seconds: float
    made: int
    share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64, help="the demo's default, 16, is over after one or two")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0, 2, 0.5], help="IVMIX_PREVIEW_SECONDS; 0: none")
    arguments = parser.parse_args()
    entry = ModelRegistry.load().get("demo")
    engine = Engine(entry, torch.device("cpu"), previews=True)
    generation = entry.resolve(VideoRequest(prompt=PROMPT, seed=7, num_inference_steps=arguments.steps))
    print(
        f"a preview takes {1000 * engine.preview_cost_s:.1f} ms; {arguments.steps} steps, {arguments.repeats} repeats"
    )
    runs: dict[float, list[Run]] = {every_s: [] for every_s in arguments.seconds}
    for _ in range(arguments.repeats):
        for every_s, done in runs.items():
            done.append(_run(engine, generation, every_s))
    first = next(iter(runs.values()))[0]
    print(f"{'every s':>8}{'previews':>10}{'fastest s':>11}{'median s':>10}{'share %':>9}")
    for every_s, done in runs.items():
        assert all(torch.equal(run.latents, first.latents) for run in done), "previews changed the video"
        seconds, made = [run.seconds for run in done], statistics.median(run.made for run in done)
        shares = max(run.share for run in done)
        print(f"{every_s:>8g}{made:>10g}{min(seconds):>11.2f}{statistics.median(seconds):>10.2f}{100 * shares:>9.2f}")
    print("the same bits in every run")


def _run(engine: Engine, generation: Generation, every_s: float) -> Run:
    previews = Previews(every_s, engine.preview_cost_s)

    def begin(phase: Phase, _step: int, _total: int) -> None:
        if phase is Phase.SAMPLING:
            previews.begin()

    sampled = engine.sample(generation, begin, on_preview=previews.offer)
    seconds = sampled.timings[Phase.SAMPLING]
    return Run(sampled.latents, seconds, previews.made, previews.spent_s / seconds)


if __name__ == "__main__":
    main()
