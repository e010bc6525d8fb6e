"""`python -m benchmarks.approximate`: what approximate sampling saves and what it changes, with the demo models.

Arms: IV-mixed as the model entry has it, IV-IV throughout the run, and the video model alone; each computed in full and
with DeepCache; and the fused sampler. All sample the same prompts from the same noise, in batches of ten. FLOP: of one
clip, of both networks, relative to the same sampler in full (fused: to IV-mixed). PSNR: of the frames, to those of that
run; scores as in `benchmarks.quality`. Prints a table; writes JSON and clips, from which a second call resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paper.local_maker import sampled_together
from benchmarks.quality import COLUMNS
from demo.drawing import BATCH, NOISE_SEED
from demo.evaluate import PROMPTS_SEED
from demo.judges import Judges
from demo.shapes import SIZE, Scenes
from service.catalog.registry import ModelRegistry
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from worker.child.engine import Engine

WHOLE_RUN = {"combination": "IV-IV", "interval": [0, 1]}
# Arm: the arm that it is compared with, and what its requests add to a prompt.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "IV-mixed": ("IV-mixed", {}),
    "IV-mixed, deep-cache": ("IV-mixed", {"cache": {"name": "deep-cache"}}),
    "IV-mixed, deep-cache, levels 2": ("IV-mixed", {"cache": {"name": "deep-cache", "levels": 2}}),
    "IV-mixed, deep-cache, steps 2": ("IV-mixed", {"cache": {"name": "deep-cache", "steps": 2}}),
    "IV-mixed, deep-cache, steps 2, levels 2": (
        "IV-mixed",
        {"cache": {"name": "deep-cache", "steps": 2, "levels": 2}},
    ),
    "fused (experimental)": ("IV-mixed", {"sampler": {"name": "fused"}}),
    "IV-IV whole run": ("IV-IV whole run", {"sampler": WHOLE_RUN}),
    "IV-IV whole run, deep-cache": ("IV-IV whole run", {"sampler": WHOLE_RUN, "cache": {"name": "deep-cache"}}),
    "video alone": ("video alone", {"sampler": {"name": "ddim"}}),
    "video alone, deep-cache, steps 2": (
        "video alone",
        {"sampler": {"name": "ddim"}, "cache": {"name": "deep-cache", "steps": 2}},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="a multiple of ten")
    parser.add_argument("--arms", default="", help="only arms whose name contains this, and what they are compared to")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.out/approximate"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder / str(arguments.prompts)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    engine = Engine(ModelRegistry.load().get("demo"), torch.device("cpu"))
    scenes = Scenes.random(arguments.prompts, Generator().manual_seed(PROMPTS_SEED))
    wanted = {name for name in ARMS if arguments.arms in name}
    wanted |= {ARMS[name][0] for name in wanted}
    rows, clips, judges = dict[str, dict[str, float]](), dict[str, Tensor](), Judges()
    for name in (name for name in ARMS if name in wanted):
        row, clips[name] = _measured(engine, name, scenes, folder / name.replace(", ", "_").replace(" ", "-"))
        against = ARMS[name][0]
        rows[name] = row | {
            "flop_share": row["flop"] / rows.get(against, row)["flop"],
            "psnr": _psnr(clips[name], clips[against]),
            **judges.score(clips[name], scenes),
        }
        print(f"{name}: {row['seconds']:.2f} CPU seconds a clip", flush=True)
    (folder / "scores.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


def _measured(engine: Engine, name: str, scenes: Scenes, path: Path) -> tuple[dict[str, float], Tensor]:
    """Calls, FLOP and CPU seconds of a clip, and all clips (n, F, 3, 48, 48) in [-1, 1]; of an earlier call if any."""
    made, facts = path.with_suffix(".npy"), path.with_suffix(".json")
    if not facts.exists():
        orders = [_generation(engine, name, caption, NOISE_SEED + i) for i, caption in enumerate(scenes.captions())]
        began = time.thread_time()
        frames = [
            clip for i in range(0, len(orders), BATCH) for clip in sampled_together(engine, orders[i : i + BATCH])
        ]
        seconds = (time.thread_time() - began) / len(orders)
        np.save(made, np.stack([_small(clip) for clip in frames]))
        row = {"calls": sum(orders[0].network_calls.values()), "flop": _flop(engine, orders[0]), "seconds": seconds}
        facts.write_text(json.dumps(row))
    return json.loads(facts.read_text()), torch.from_numpy(np.load(made))


def _generation(engine: Engine, name: str, prompt: str, seed: int) -> Generation:
    return engine.models.entry.resolve(VideoRequest.model_validate({"prompt": prompt, "seed": seed, **ARMS[name][1]}))


def _flop(engine: Engine, generation: Generation) -> float:
    """Of sampling a clip by itself, without decoding it. Counted by torch: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        engine.sample(generation)
    return float(counter.get_total_flops())


def _small(frames: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (F, 3, 48, 48) in [-1, 1]."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(pixels, size=(SIZE, SIZE), mode="area").numpy()


def _psnr(clips: Tensor, others: Tensor) -> float:
    """In dB, the mean over clips; infinite for equal ones."""
    error = ((clips - others) / 2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    named = {"calls": "calls", "flop_share": "FLOP", "seconds": "CPU s", "psnr": "PSNR dB", **COLUMNS}
    formats = {"calls": ".0f", "seconds": ".2f", "psnr": ".1f", "frame_fd": ".2f", "video_fd": ".2f"}
    lines = ["| arm | " + " | ".join(named.values()) + " |", "|---" * (1 + len(named)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:{formats.get(key, '.3f')}}" for key in named) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
