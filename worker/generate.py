"""`ivmix generate "prompt" -o out.mp4`: run the engine in this process, without server, queue and storage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from service.catalog.model_entry import invalid_parameter
from service.catalog.registry import ModelRegistry
from service.cli.errors import user_errors
from service.errors import InvalidParameter
from service.jobs.model import Generation, Phase
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES
from service.settings import load_settings
from worker.child import video
from worker.child.engine import Clip, Engine

SAMPLER = "Sampler (default: the model's settings)"


app = typer.Typer(add_completion=False)


@app.command()
def generate(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the mp4.")] = Path("video.mp4"),
    model: Annotated[str | None, typer.Option(help="Model id; default: the first model.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: random.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="num_inference_steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="num_frames.")] = None,
    compare: Annotated[bool, typer.Option(help="Plain DDIM and IV-mixed side by side, from the same seed.")] = False,
    sampler: Annotated[str | None, typer.Option(help=", ".join(USES), rich_help_panel=SAMPLER)] = None,
    combination: Annotated[str | None, typer.Option(help="IV-IV, R-I ...", rich_help_panel=SAMPLER)] = None,
    order: Annotated[str | None, typer.Option(help="denoise_first, goback_first", rich_help_panel=SAMPLER)] = None,
    interval: Annotated[
        tuple[float, float] | None, typer.Option(help="active part of the run, 0 to 1", rich_help_panel=SAMPLER)
    ] = None,
    image_guidance: Annotated[
        tuple[float, float] | None, typer.Option(help="at the first and last step", rich_help_panel=SAMPLER)
    ] = None,
    video_guidance: Annotated[
        tuple[float, float] | None, typer.Option(help="at the first and last step", rich_help_panel=SAMPLER)
    ] = None,
    rho: Annotated[
        float | None,
        typer.Option(help="curvature of the guidance between first and last step", rich_help_panel=SAMPLER),
    ] = None,
    image_every: Annotated[
        int | None, typer.Option(help="image model in every n-th step", rich_help_panel=SAMPLER)
    ] = None,
    goback_guidance: Annotated[float | None, typer.Option(help="zigzag", rich_help_panel=SAMPLER)] = None,
    iterations: Annotated[int | None, typer.Option(help="freeinit", rich_help_panel=SAMPLER)] = None,
) -> None:
    """Generate a video without a server."""
    settings = {
        "combination": combination,
        "order": order,
        "interval": interval,
        "image_guidance": image_guidance,
        "video_guidance": video_guidance,
        "rho": rho,
        "image_every": image_every,
        "goback_guidance": goback_guidance,
        "iterations": iterations,
    }
    request = {
        "prompt": prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "size": size,
        "num_frames": frames,
    }
    with user_errors():
        if compare and sampler not in (None, "iv-mixed"):
            raise InvalidParameter("sampler", f"--compare runs ddim and iv-mixed; leave out --sampler {sampler}.")
        entry = ModelRegistry.of(load_settings()).get(model)
        name = "iv-mixed" if compare else sampler
        mixed = entry.resolve(_request(request, {**settings, "name": name}))
        plain = [entry.resolve(_request({**request, "seed": mixed.seed}, {"name": "ddim"}))] if compare else []
        engine = Engine(entry)
        start = time.perf_counter()
        clips = [_generate(engine, generation) for generation in (*plain, mixed)]
    pictures = [clip.frames.numpy() for clip in clips]
    pixels = video.side_by_side(pictures, ["DDIM", "IV-mixed"]) if compare else pictures[0]
    output = output.expanduser()
    video.write_mp4(pixels, output, fps=mixed.fps)
    calls = ", ".join(f"{count} {network}" for network, count in mixed.network_calls.items())
    typer.echo(f"{output}: seed {mixed.seed}, {time.perf_counter() - start:.1f} s, network calls: {calls}")


def _request(fields: dict[str, Any], sampler: dict[str, Any]) -> VideoRequest:
    """Raises InvalidParameter."""
    try:
        return VideoRequest.model_validate({**fields, "sampler": sampler})
    except ValidationError as e:
        raise invalid_parameter(e) from e


def _generate(engine: Engine, generation: Generation) -> Clip:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(generation.sampler.name, total=generation.total_steps)

        def show(phase: Phase, step: int, total: int) -> None:
            bar.update(task, completed=step, total=total, description=f"{generation.sampler.name} {phase}")

        return engine.generate(generation, show)


if __name__ == "__main__":
    app(prog_name="ivmix generate")
