"""`python -m demo.evaluate`: prompt accuracy, watermark and Frechet distances of the demo pair, sampler by sampler.

All samplers see the same prompts and the same noise. Plain DDIM comes twice: with as many steps, and with as many
network calls as IV-mixed ("compute-matched"). Prints a table, writes JSON and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from demo.judges import Judges, footage
from demo.shapes import Scenes
from sampler import ddim_plan, mixed_plan, sample, seeded_noise
from service.jobs import VideoRequest
from service.registry import ModelRegistry
from worker.models import Models, load

PROMPTS_SEED = 41
COLUMNS = (
    "shape",
    "color",
    "background",
    "motion",
    "degraded",
    "watermark",
    "wobble_px",
    "frame_fd",
    "video_fd",
    "calls",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batch", type=int, default=10, help="clips at once")
    parser.add_argument("--json", type=Path, default=Path("demo/.work/evaluation.json"))
    parser.add_argument("--sheet", type=Path, default=Path("demo/.work/evaluation.png"))
    parser.add_argument(
        "--variant", type=json.loads, action="append", default=[], help="sampler settings to try, as JSON"
    )
    parser.add_argument("--only-variants", action="store_true", help="leave out the standard rows")
    arguments = parser.parse_args()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # faster than two at these sizes; run two evaluations side by side instead
    judges = Judges()
    scenes = Scenes.random(arguments.prompts, Generator().manual_seed(PROMPTS_SEED))
    rows: dict[str, dict[str, float]] = {}
    if not arguments.only_variants:
        sharp, rough, real = footage(arguments.prompts, Generator().manual_seed(PROMPTS_SEED))
        rows["real, sharp"] = judges.score(sharp, real)
        rows["real, degraded"] = judges.score(rough, real)
    models = load(ModelRegistry.load().get("demo"), "cpu")
    kept: list[Tensor] = []
    for name, settings in _runs(models, arguments.variant, standard=not arguments.only_variants):
        clips, calls, seconds = _clips(models, settings, scenes, arguments.batch)
        rows[name] = {**judges.score(clips, scenes), "calls": calls, "seconds": seconds}
        kept.append(clips[:10])
        print(_table(rows), flush=True)
        arguments.json.write_text(json.dumps({"prompts": arguments.prompts, "rows": rows}, indent=1))
    _sheet(kept, arguments.sheet)


def _runs(models: Models, variants: list[dict[str, Any]], *, standard: bool) -> list[tuple[str, dict[str, Any]]]:
    default = models.entry.resolve(VideoRequest(prompt="a circle"))
    base = {
        **default.sampler.used,
        "steps": default.num_inference_steps,
        "guidance": default.guidance_scale,
    }
    schedules = models.video_schedule, models.image_schedule
    matched = sum(mixed_plan(schedules[0], **base).calls.values())
    ddim = {"guidance": default.guidance_scale}
    rows = [
        (f"DDIM {base['steps']}", {**ddim, "steps": base["steps"]}),
        (f"DDIM {matched} (compute-matched)", {**ddim, "steps": matched}),
        (f"IV-mixed {base['steps']}", base),
    ]
    return (rows if standard else []) + [(json.dumps(v), {**base, **v}) for v in variants]


@torch.no_grad()
def _clips(models: Models, settings: dict[str, Any], scenes: Scenes, batch: int) -> tuple[Tensor, int, float]:
    """Clips at the networks' own size, network calls of one clip, seconds of CPU time a clip."""
    entry = models.entry
    mixed = "combination" in settings
    plan = (
        mixed_plan(models.video_schedule, image_schedule=models.image_schedule, **settings)
        if mixed
        else ddim_plan(models.video_schedule, **settings)
    )
    shape = models.latents_shape(entry.resolve(VideoRequest(prompt="a circle")))
    clips: list[Tensor] = []
    began = time.process_time()
    for start in range(0, len(scenes), batch):
        captions = scenes[slice(start, start + batch)].captions()
        negative = models.encode([entry.negative_prompt] * len(captions))
        image, video = models.denoisers(models.encode(captions), negative)
        latents = seeded_noise((len(captions), *shape[1:]), [1000 + start + i for i in range(len(captions))])
        for step in sample(latents, plan, image=image, video=video):
            latents = step.latents
        frames = models.vae.decode(latents.transpose(1, 2).flatten(0, 1) / models.vae.config.scaling_factor).sample
        clips.append(frames.clamp(-1, 1).unflatten(0, (len(captions), -1)))
    return torch.cat(clips), sum(plan.calls.values()), (time.process_time() - began) / len(scenes)


def _table(rows: dict[str, dict[str, float]]) -> str:
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{c:>11}" for c in COLUMNS)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[c]:>11.3f}" if c in row else " " * 11 for c in COLUMNS))
    return "\n".join(lines)


def _sheet(groups: list[Tensor], path: Path) -> None:
    """Rows are prompts, groups of columns are samplers: the first prompts, not picked."""
    pixels = torch.cat([torch.cat(list(g.transpose(0, 1)), dim=-1) for g in groups], dim=-1)  # (n, 3, H, groups*F*W)
    picture = torch.cat(list(pixels), dim=-2)
    array = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(path)


if __name__ == "__main__":
    main()
