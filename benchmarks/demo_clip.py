"""`python -m benchmarks.demo_clip`: seconds per clip of the demo models, from prompt to MP4, with models loaded.

Three interleaved arms: the demo's default, plain DDIM with as many steps, and 50 steps of IV-IV throughout (the paper's
setting). Prints the fastest and the median of each and the ratio to plain DDIM; writes JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import SamplerSettings
from worker.child import mp4
from worker.child.engine import Engine

PROMPT = "a red circle moving right on a teal background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="instead of the model entry's")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    entry = ModelRegistry.load().get("demo")
    if arguments.threads:
        entry = entry.model_copy(update={"cpu_threads": arguments.threads})
    engine = Engine(entry, torch.device("cpu"))
    default = entry.resolve(VideoRequest(prompt=PROMPT, seed=7))
    steps, paper = default.num_inference_steps, default.model_copy(update={"num_inference_steps": 50})
    arms = {
        f"plain DDIM, {steps} steps": _with(default, name="ddim"),
        f"default: IV-mixed, {steps} steps": default,
        "IV-mixed, 50 steps, whole run": _with(paper, interval=(0.0, 1.0)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(arguments.repeats):
        for name, generation in arms.items():
            seconds[name].append(_clip(engine, generation))
    plain = min(next(iter(seconds.values())))
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    print(f"{machine}, {arguments.repeats} repeats")
    print(f"{'arm':<34}{'calls':>7}{'fastest s':>11}{'median s':>10}{'x DDIM':>8}")
    for name, generation in arms.items():
        calls = sum(engine.plan(generation).calls.values())
        fastest, median = min(seconds[name]), statistics.median(seconds[name])
        print(f"{name:<34}{calls:>7}{fastest:>11.2f}{median:>10.2f}{fastest / plain:>8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds, indent=1))


def _with(generation: Generation, **sampler: object) -> Generation:
    changed = SamplerSettings.model_validate(generation.sampler.model_dump() | sampler)
    return generation.model_copy(update={"sampler": changed})


def _clip(engine: Engine, generation: Generation) -> float:
    began = time.perf_counter()
    clip = engine.generate(generation)
    with tempfile.TemporaryDirectory() as folder:
        mp4.write_mp4(clip.frames.numpy(), Path(folder) / "a.mp4", fps=generation.fps)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
