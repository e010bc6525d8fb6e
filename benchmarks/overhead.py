"""`python -m benchmarks.overhead`: the cost of the sampling loop itself, in microseconds per outer step.

Two arms with null networks, interleaved in one process: our loop on the released plan (five moves a step), and the
released loop on diffusers' schedulers. The result is the mean over steps of each step's fastest round, so that a busy
machine matters little. Before timing, both arms are checked to end in the same latents. --json writes
us_per_outer_step, reference_us_per_outer_step and ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.released_loops import SCHEDULER, released_loop
from sampler import ImageDenoiser, NoiseSchedule, VideoDenoiser, official_plan, sample, seeded_noise

SHAPE = (1, 4, 2, 4, 4)  # small, so that the time is the host's work, which does not depend on the shape
TEXT = (1, 2, 8)
GOAL_RATIO = 0.5


class Null:
    """A network that returns its input."""

    def __call__(self, x: Tensor, _timestep: object, **_text: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=50, help="outer steps of a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ours, reference = measure(arguments.rounds, arguments.steps)
    ratio = ours / reference
    print(f"torch {torch.__version__}, {arguments.rounds} rounds of {arguments.steps} outer steps, fastest of each")
    print(f"{'arm':<30}{'us per outer step':>18}{'ratio':>8}")
    print(f"{'ours':<30}{ours:>18.1f}{ratio:>8.3f}")
    print(f"{'released loop, diffusers':<30}{reference:>18.1f}{1:>8.3f}")
    print(f"goal: at most {GOAL_RATIO} of the released loop")
    if arguments.json:
        result = {"us_per_outer_step": ours, "reference_us_per_outer_step": reference, "ratio": ratio}
        arguments.json.write_text(json.dumps(result, indent=1))


def measure(rounds: int, steps: int) -> tuple[float, float]:
    """Microseconds per outer step: (ours, the released loop's)."""
    x, cond, uncond, null = seeded_noise(SHAPE, 0), torch.ones(TEXT), torch.zeros(TEXT), Null()
    text = torch.cat([uncond, cond])
    image, video = ImageDenoiser(null, cond, uncond), VideoDenoiser(null, cond, uncond)
    plan = official_plan("animatediff", NoiseSchedule.from_config(SCHEDULER), steps)
    arms: tuple[Callable[[], Iterator[Tensor]], ...] = (
        lambda: (step.latents for step in sample(x, plan, image=image, video=video)),
        lambda: released_loop(x, null, null, text, text, steps),
    )
    ends = [_last(arm()) for arm in arms]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)
    fastest = [[float("inf")] * steps for _ in arms]
    for _ in range(rounds):
        for best, arm in zip(fastest, arms, strict=True):
            best[:] = map(min, best, _seconds(arm))
    ours, reference = (1e6 * sum(best) / steps for best in fastest)
    return ours, reference


def _seconds(arm: Callable[[], Iterator[Tensor]]) -> Iterator[float]:
    """Of each step; the first includes the preparation before the loop."""
    began = time.perf_counter()
    for _ in arm():
        ended = time.perf_counter()
        yield ended - began
        began = time.perf_counter()


def _last(run: Iterator[Tensor]) -> Tensor:
    *_, end = run
    return end


if __name__ == "__main__":
    main()
