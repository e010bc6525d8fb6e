"""`python -m demo.evaluate`: prompt accuracy, watermark and Frechet distances of the demo models, per sampler.

The arms are each model alone and IV-mixed, from the same prompts and noise. The video model alone runs twice: with as
many steps as IV-mixed, and with as many network calls ("compute-matched"). Prints a table; writes JSON and a contact
sheet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from demo.drawing import NOISE_SEED, demo_models, draw
from demo.judges import Judges, footage
from demo.shapes import Scenes
from sampler import Plan, ddim_plan, mixed_plan
from service.jobs.request import VideoRequest
from worker.child.plans import plan_settings
from worker.networks.models import Models

PROMPTS_SEED = 41
COLUMNS = (
    *("shape", "color", "background", "motion", "degraded", "watermark", "wobble_px"),
    *("size_spread", "coherence", "frame_fd", "video_fd", "calls", "seconds"),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--prompts-seed", type=int, default=PROMPTS_SEED)
    parser.add_argument(
        "--noise-seed",
        type=int,
        default=NOISE_SEED,
        help="seed of the first prompt, incremented for each further prompt",
    )
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--json", type=Path, default=Path("demo/.work/evaluation.json"))
    parser.add_argument("--sheet", type=Path, default=Path("demo/.work/evaluation.png"))
    parser.add_argument(
        "--variant",
        type=json.loads,
        action="append",
        default=[],
        help="JSON object of IV-mixed settings to evaluate in addition; repeatable",
    )
    parser.add_argument(
        "--alone",
        type=json.loads,
        action="append",
        default=[],
        help="JSON object with model and guidance of `ddim_plan` to evaluate in addition; repeatable",
    )
    parser.add_argument("--only-variants", action="store_true", help="omit the standard rows")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    for file in (arguments.json, arguments.sheet):
        file.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    judges = Judges()
    scenes = Scenes.random(arguments.prompts, Generator().manual_seed(arguments.prompts_seed))
    rows: dict[str, dict[str, float]] = {}
    if not arguments.only_variants:
        sharp, rough, real = footage(arguments.prompts, Generator().manual_seed(arguments.prompts_seed))
        rows["real, sharp"] = judges.score(sharp, real)
        rows["real, degraded"] = judges.score(rough, real)
    models = demo_models()
    plans = _variants(models, arguments.variant, arguments.alone)
    plans = plans if arguments.only_variants else arms(models) | plans
    kept: list[Tensor] = []
    for name, drawn in draw(plans, scenes, first_seed=arguments.noise_seed, processes=arguments.processes):
        rows[name] = judges.score(drawn.clips, scenes) | {"calls": _calls(plans[name]), "seconds": drawn.seconds}
        kept.append(drawn.clips[:10])
        print(table(rows), flush=True)
        arguments.json.write_text(json.dumps({"prompts": arguments.prompts, "rows": rows}, indent=1))
    sheet(kept, arguments.sheet)


def default_settings(models: Models) -> dict[str, Any]:
    """The sampler settings of the model entry as arguments of `mixed_plan`."""
    default = models.entry.resolve(VideoRequest(prompt="a circle"))
    return {
        **plan_settings(default.sampler),
        "image_schedule": models.image_schedule,
        "steps": default.num_inference_steps,
        "guidance": default.guidance_scale,
    }


def arms(models: Models) -> dict[str, Plan]:
    """Each model alone and IV-mixed, with the guidance that the model entry has for each."""
    schedule, settings = models.video_schedule, default_settings(models)
    mixed, steps, guidance = mixed_plan(schedule, **settings), settings["steps"], settings["guidance"]
    image = models.entry.resolve(VideoRequest(prompt="a circle", sampler={"name": "ddim", "network": "image"}))
    return {
        f"image alone, {steps}": ddim_plan(models.image_schedule, steps, guidance=image.guidance_scale, model="image"),
        f"video alone, {steps}": ddim_plan(schedule, steps, guidance=guidance),
        f"IV-mixed, {steps}": mixed,
        f"video alone, {_calls(mixed)} (compute-matched)": ddim_plan(schedule, _calls(mixed), guidance=guidance),
    }


def _variants(
    models: Models, mixed: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]
) -> dict[str, Plan]:
    settings = default_settings(models)
    schedules = {"image": models.image_schedule, "video": models.video_schedule}
    return {json.dumps(v): mixed_plan(models.video_schedule, **settings | v) for v in mixed} | {
        f"alone {json.dumps(v)}": ddim_plan(schedules[v["model"]], settings["steps"], **v) for v in alone
    }


def _calls(plan: Plan) -> int:
    return sum(plan.calls.values())


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{c:>11}" for c in COLUMNS)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[c]:>11.3f}" if c in row else " " * 11 for c in COLUMNS))
    return "\n".join(lines)


def sheet(groups: Sequence[Tensor], path: Path) -> None:
    """Write a contact sheet: a row per prompt, a group of columns per sampler. The first prompts, not selected."""
    pixels = torch.cat([torch.cat(list(g.transpose(0, 1)), dim=-1) for g in groups], dim=-1)  # (n, 3, H, groups*F*W)
    picture = torch.cat(list(pixels), dim=-2)
    array = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main()
