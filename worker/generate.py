"""`ivmix generate "prompt" -o out.mp4`: the engine in this process, without server, queue and storage."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from service.errors import ServiceError
from service.jobs import Generation, Phase, VideoRequest
from service.registry import ModelRegistry
from service.settings import load_settings
from worker import video
from worker.engine import Clip, Engine


def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the mp4.")] = Path("video.mp4"),
    model: Annotated[str | None, typer.Option(help="Model id; the first one if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random if left out.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="num_inference_steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="iv-mixed or ddim.")] = None,
    compare: Annotated[bool, typer.Option(help="Plain DDIM and IV-mixed side by side, from the same seed.")] = False,
) -> None:
    """A video without any server."""
    try:
        entry = ModelRegistry.load(load_settings().models).get(model)
        names = ["ddim", "iv-mixed"] if compare else [sampler] if sampler else [None]
        request = {"prompt": prompt, "seed": seed, "num_inference_steps": steps}
        first = entry.resolve(_request(request, names[0]))
        generations = [first] + [entry.resolve(_request({**request, "seed": first.seed}, name)) for name in names[1:]]
    except ServiceError as e:
        typer.echo(f"ivmix: {e}", err=True)
        raise typer.Exit(1) from e
    engine = Engine(entry)
    began = time.perf_counter()
    clips = [_generate(engine, generation) for generation in generations]
    frames = [clip.frames.numpy() for clip in clips]
    pixels = video.side_by_side(frames, ["DDIM", "IV-mixed"]) if compare else frames[0]
    video.write_mp4(pixels, output, fps=first.fps)
    typer.echo(f"{output}: seed {first.seed}, {time.perf_counter() - began:.1f} s")


def _request(fields: dict[str, Any], sampler: str | None) -> VideoRequest:
    return VideoRequest.model_validate({**fields, "sampler": {"name": sampler} if sampler else None})


def _generate(engine: Engine, generation: Generation) -> Clip:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(generation.sampler.name, total=generation.num_inference_steps)

        def show(phase: Phase, step: int, total: int) -> None:
            bar.update(task, completed=step, total=total, description=f"{generation.sampler.name} {phase}")

        return engine.generate(generation, show)


if __name__ == "__main__":
    sys.argv[0] = "ivmix generate"
    typer.run(generate)
