"""`python -m benchmarks.solver_steps`: what fewer steps cost, for both solvers, with the demo models.

Arms: the video model alone and IV-mixed as the model entry has it, with DDIM and DPM-Solver++ 2M, at each number of
steps. Every arm samples the same prompts from the same noise and is scored as in `benchmarks.quality`; `to 50 ddim` is
the mean distance of the frames to those of the same sampler at 50 steps of DDIM, on a scale of 0 to 1.
Prints a table; writes JSON, from which a second call resumes, and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from demo.drawing import demo_models, draw
from demo.evaluate import PROMPTS_SEED, default_settings
from demo.judges import Judges
from demo.shapes import Scenes
from sampler import Plan, ddim_plan, mixed_plan
from worker.networks.models import Models

STEPS = (8, 12, 16, 25, 50)
SOLVERS = ("ddim", "dpmpp-2m")
REFERENCE_STEPS = 50
COLUMNS = ("frame_fd", "video_fd", "shape", "color", "background", "motion", "coherence", "watermark", "to_50_ddim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.out/solver_steps"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    plans = arms(demo_models(), arguments.steps)
    scenes = Scenes.random(arguments.prompts, Generator().manual_seed(PROMPTS_SEED))
    clips = {name: _drawn(arguments.folder, name, arguments.prompts) for name in plans}
    todo = {name: plan for name, plan in plans.items() if clips[name] is None}
    for name, drawn in draw(todo, scenes, processes=arguments.processes):
        clips[name] = drawn.clips
        np.save(_file(arguments.folder, name, arguments.prompts), drawn.clips.numpy())
        print(f"{name}: {drawn.seconds:.2f} s a clip", flush=True)
    rows = scored({name: found for name, found in clips.items() if found is not None}, plans, scenes)
    (arguments.folder / "scores.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))
    sheet({name: found for name, found in clips.items() if found is not None}, arguments.folder / "sheet.png")


def arms(models: Models, steps: tuple[int, ...] | list[int]) -> dict[str, Plan]:
    """By name, every sampler, solver and number of steps; DDIM at 50 steps is always among them."""
    settings = default_settings(models)
    plans: dict[str, Plan] = {}
    for count in sorted({*steps, REFERENCE_STEPS}):
        for solver in SOLVERS:
            chosen: dict[str, Any] = {"steps": count, "solver": solver}
            plain = ddim_plan(models.video_schedule, guidance=settings["guidance"], **chosen)
            plans[_name("video alone", **chosen)] = plain
            plans[_name("IV-mixed", **chosen)] = mixed_plan(models.video_schedule, **settings | chosen)
    return dict(sorted(plans.items(), key=lambda arm: arm[0].startswith("IV-mixed")))


def _name(sampler: str, steps: int, solver: str) -> str:
    return f"{sampler}, {solver}, {steps}"


def scored(clips: dict[str, Tensor], plans: dict[str, Plan], scenes: Scenes) -> dict[str, dict[str, float]]:
    judges = Judges()
    rows: dict[str, dict[str, float]] = {}
    for name, found in clips.items():
        reference = clips[_name(name.split(", ")[0], REFERENCE_STEPS, "ddim")]
        distance = float((found - reference).abs().mean()) / 2
        calls = sum(plans[name].calls.values())
        rows[name] = judges.score(found, scenes) | {"to_50_ddim": distance, "calls": calls}
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    width = max(map(len, rows))
    lines = [f"{'arm':<{width}}{'calls':>7}" + "".join(f"{c.replace('_', ' '):>12}" for c in COLUMNS)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}{row['calls']:>7.0f}" + "".join(f"{row[c]:>12.3f}" for c in COLUMNS))
    return "\n".join(lines)


def sheet(clips: dict[str, Tensor], path: Path, prompts: int = 3) -> None:
    """One row per arm: its name on the left, then the first prompts."""
    strips = {name: _pixels(found[:prompts]) for name, found in clips.items()}
    margin, (height, width, _) = 220, next(iter(strips.values())).shape
    picture = Image.new("RGB", (margin + width, height * len(strips)), "white")
    pen = ImageDraw.Draw(picture)
    for row, (name, strip) in enumerate(strips.items()):
        pen.text((6, row * height + height // 2 - 6), name, fill="black")
        picture.paste(Image.fromarray(strip), (margin, row * height))
    picture.save(path)


def _pixels(clips: Tensor) -> np.ndarray:
    """(n, F, 3, H, W) in [-1, 1] as one row (H, n*F*W, 3) uint8."""
    pixels = ((clips + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(3, 0, 1, 4, 2).flatten(1, 3).numpy()


def _file(folder: Path, name: str, prompts: int) -> Path:
    return folder / f"{name.replace(', ', '_').replace(' ', '-')}_{prompts}.npy"


def _drawn(folder: Path, name: str, prompts: int) -> Tensor | None:
    """The clips of an earlier call."""
    file = _file(folder, name, prompts)
    return torch.from_numpy(np.load(file)) if file.exists() else None


if __name__ == "__main__":
    main()
