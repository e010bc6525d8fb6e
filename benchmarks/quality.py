"""`python -m benchmarks.quality`: the paper's ablations with the demo models, every sampler from the same noise.

Arms: plain DDIM with as many steps and with as many network calls, each model alone, the six two-model combinations in
both orders, parts of the run, Gaussian re-noise, the fused surrogate, Z-Sampling and FreeInit. Each arm samples the
same prompts from the same noise for each seed; the table lists the mean and standard deviation over the seeds.
`--set rivals` compares other methods instead, each with as many network calls as IV-mixed with the entry's settings:
EVS, and the video model with APG and CFG-Zero*.
Accuracies come from classifiers trained on demo clips (`demo/judges.py`); Frechet distances are to 400 sharp clips.
Prints a table; writes JSON (from which a second call resumes) and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from demo.drawing import NOISE_SEED, demo_models, draw
from demo.evaluate import PROMPTS_SEED, default_settings
from demo.judges import Judges
from demo.shapes import Scenes
from sampler import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    Plan,
    ddim_plan,
    evs_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    zigzag_plan,
)
from worker.networks.models import Models

PAIRS = ("IV-IV", "IV-VI", "VI-IV", "VI-VI", "II-VV", "VV-II")
# key of Judges.score: column heading
COLUMNS = {
    "frame_fd": "frame FD",
    "video_fd": "video FD",
    "shape": "shape",
    "color": "colour",
    "background": "backgr.",
    "motion": "motion",
    "coherence": "coherence",
    "wobble_px": "wobble px",
    "watermark": "watermark",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="prompts per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--set", choices=("ablations", "rivals"), default="ablations")
    parser.add_argument("--arms", default="", help="only arms whose name contains this")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/.out/quality.json"))
    parser.add_argument("--sheet", type=Path, default=Path("benchmarks/.out/quality.png"))
    arguments = parser.parse_args()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    models = demo_models()
    plans = rivals(models) if arguments.set == "rivals" else arms(models, arguments.steps)
    plans = {name: plan for name, plan in plans.items() if arguments.arms in name}
    result = _earlier_results(arguments.json, {"prompts": arguments.prompts, "steps": arguments.steps})
    strips = _Strips(arguments.json.with_suffix(".npz"))
    judges = Judges()
    scenes = Scenes.random(arguments.prompts, Generator().manual_seed(PROMPTS_SEED))
    for seed in range(arguments.seeds):
        todo = {name: plan for name, plan in plans.items() if str(seed) not in result["arms"].get(name, {})}
        first = NOISE_SEED * (seed + 1)
        for name, drawn in draw(todo, scenes, first_seed=first, processes=arguments.processes):
            row = judges.score(drawn.clips, scenes) | {"seconds": drawn.seconds}
            result["arms"].setdefault(name, {})[str(seed)] = row
            result["calls"][name] = plans[name].calls
            arguments.json.write_text(json.dumps(result, indent=1))
            if seed == 0:
                strips.add(name, drawn.clips[:2])
            print(f"{name}, seed {seed}: frame FD {row['frame_fd']:.2f}, video FD {row['video_fd']:.2f}", flush=True)
    shown = {name: list(result["arms"][name].values()) for name in plans if name in result["arms"]}
    print(table(shown, result["calls"]))
    strips.draw([name for name in plans if name in strips.frames], arguments.sheet)


def arms(models: Models, steps: int) -> dict[str, Plan]:
    """Every sampler, with the guidance of the model entry and, unless named otherwise, throughout the run."""
    schedule, default = models.video_schedule, default_settings(models)
    guidance = default["guidance"]
    whole = default | {"steps": steps, "interval": (0.0, 1.0)}
    shared = ("interval", "image_guidance", "video_guidance", "rho", "guidance", "image_schedule")
    matched = sum(mixed_plan(schedule, **whole).calls.values())

    def mixed(**changes: Any) -> Plan:
        return mixed_plan(schedule, **whole | changes)

    plain = ddim_plan(schedule, steps, guidance=guidance)
    return {
        f"DDIM {steps}": plain,
        f"DDIM {matched}, as many calls": ddim_plan(schedule, matched, guidance=guidance),
        "I-I": mixed(combination="I-I"),
        "V-V": mixed(combination="V-V"),
        **{pair: mixed(combination=pair) for pair in PAIRS},
        **{f"{pair}, go back first": mixed(combination=pair, order="goback_first") for pair in PAIRS},
        "IV-IV, first half": mixed(interval=(0.0, 0.5)),
        "IV-IV, second half": mixed(interval=(0.5, 1.0)),
        "IV-IV, the entry's interval": mixed(interval=default["interval"]),
        "R-I, go back first": mixed(combination="R-I", order="goback_first"),
        "RR-VV, go back first": mixed(combination="RR-VV", order="goback_first"),
        "fused (experimental)": fused_plan(schedule, steps, **{key: whole[key] for key in shared}),
        "Z-Sampling": zigzag_plan(schedule, steps, guidance=guidance),
        "FreeInit, 3 runs": free_init_plan(plain, schedule),
    }


def rivals(models: Models) -> dict[str, Plan]:
    """IV-mixed with the entry's settings, and other methods with as many network calls."""
    schedule, image_schedule, default = models.video_schedule, models.image_schedule, default_settings(models)
    mixed, guidance = mixed_plan(schedule, **default), default["guidance"]
    calls = sum(mixed.calls.values())
    of_image = models.entry.image_guidance_scale or guidance
    apg, zero = AdaptiveProjectedGuidance(), CfgZeroStar()

    def evs(**changes: Any) -> Plan:
        settings = {"guidance": guidance, "image_guidance": of_image, "image_schedule": image_schedule, "enlarge": 1}
        return evs_plan(schedule, calls, **settings | changes)

    return {
        "IV-mixed": mixed,
        "image alone": ddim_plan(image_schedule, calls, guidance=of_image, model="image"),
        "video alone": ddim_plan(schedule, calls, guidance=guidance),
        "video alone, guidance 6": ddim_plan(schedule, calls, guidance=6),
        "APG": ddim_plan(schedule, calls, guidance=guidance, rule=apg),
        "APG, guidance 6": ddim_plan(schedule, calls, guidance=6, rule=apg),
        "CFG-Zero*": ddim_plan(schedule, calls + 1, guidance=guidance, rule=zero),
        "CFG-Zero*, guidance 6": ddim_plan(schedule, calls + 1, guidance=6, rule=zero),
        "EVS": evs(),
        "EVS, image in every 2nd step": evs(image_every=2),
        "EVS, image until 0.8": evs(image_interval=(0.5, 0.8)),
        "EVS, enlarged by 2": evs(enlarge=2),
        "IV-mixed, APG": mixed_plan(schedule, **default | {"rule": apg}),
    }


def table(rows: Mapping[str, list[dict[str, float]]], calls: Mapping[str, Mapping[str, int]]) -> str:
    """Mean and standard deviation over the seeds of every arm."""
    width = max(map(len, rows))
    lines = [f"{'arm':<{width}} {'I calls':>8}{'V calls':>8}" + "".join(f"{c:>16}" for c in COLUMNS.values())]
    for name, seeds in rows.items():
        cells = [_mean_and_spread([row[key] for row in seeds]) for key in COLUMNS]
        count = f"{calls[name]['image']:>8}{calls[name]['video']:>8}"
        lines.append(f"{name:<{width}} {count}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _earlier_results(file: Path, settings: dict[str, int]) -> dict[str, Any]:
    """The results of an earlier call with the same settings; empty if the settings differ."""
    found = json.loads(file.read_text()) if file.exists() else {}
    return found if found.get("settings") == settings else {"settings": settings, "arms": {}, "calls": {}}


class _Strips:
    """The frames of two prompts of every arm, saved next to the JSON until the contact sheet is drawn."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.frames: dict[str, np.ndarray] = dict(np.load(file)) if file.exists() else {}

    def add(self, name: str, clips: Tensor) -> None:
        pixels = ((clips + 1) * 127.5).round().to(torch.uint8)  # (2, F, 3, H, W)
        self.frames[name] = pixels.permute(3, 0, 1, 4, 2).flatten(1, 3).numpy()  # (H, 2*F*W, 3)
        np.savez_compressed(self.file, **self.frames)  # pyright: ignore[reportArgumentType]  # its stub wants a bool

    def draw(self, names: list[str], path: Path) -> None:
        """One row per arm: its name on the left, then the first two prompts."""
        margin, (height, width, _) = 220, self.frames[names[0]].shape
        picture = Image.new("RGB", (margin + width, height * len(names)), "white")
        pen = ImageDraw.Draw(picture)
        for row, name in enumerate(names):
            pen.text((6, row * height + height // 2 - 6), name, fill="black")
            picture.paste(Image.fromarray(self.frames[name]), (margin, row * height))
        picture.save(path)


if __name__ == "__main__":
    main()
