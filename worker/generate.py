"""`ivmix generate "prompt" -o out.mp4`: run the engine in this process, without server, queue and storage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from service.catalog.model_entry import ModelEntry, invalid_parameter
from service.catalog.registry import ModelRegistry
from service.cli.console import Steps
from service.errors import InvalidParameter
from service.jobs.model import Generation, Phase
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES
from service.settings import load_settings

if TYPE_CHECKING:
    from worker.child.engine import Clip, Engine

Pair = tuple[float, float] | None


def _sampler_option(text: str) -> Any:  # Any: Typer's own return type
    return typer.Option(help=text, rich_help_panel="Sampler (default: the model's settings)")


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
    sampler: Annotated[str | None, _sampler_option(", ".join(USES))] = None,
    combination: Annotated[str | None, _sampler_option("IV-IV, R-I ...")] = None,
    order: Annotated[str | None, _sampler_option("denoise_first, goback_first")] = None,
    interval: Annotated[Pair, _sampler_option("active part of the run, 0 to 1")] = None,
    image_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    video_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    rho: Annotated[float | None, _sampler_option("curvature of the guidance between first and last step")] = None,
    image_every: Annotated[int | None, _sampler_option("image model in every n-th step")] = None,
    goback_guidance: Annotated[float | None, _sampler_option("zigzag")] = None,
    iterations: Annotated[int | None, _sampler_option("freeinit")] = None,
) -> None:
    """Generate a video without a server."""
    options = locals()
    entry = ModelRegistry.of(load_settings()).get(model)
    generations = _generations(entry, options)
    steps_shown = Steps(Console(stderr=True))
    with steps_shown.step("models", f"loading {entry.id}") as step:
        # --help and refused options answer without loading torch and diffusers, which takes seconds.
        from worker.child import video_encoder
        from worker.child.engine import Engine

        engine = Engine(entry)
        step.done = f"{entry.id} on {engine.device_name}"
    start = time.perf_counter()
    clips = [_generate(engine, generation, steps_shown).frames.numpy() for generation in generations]
    pixels = video_encoder.side_by_side(clips, ["DDIM", "IV-mixed"]) if compare else clips[0]
    last, output = generations[-1], output.expanduser()
    video_encoder.write_mp4(pixels, output, fps=last.fps)
    calls = ", ".join(f"{count} {network}" for network, count in last.network_calls.items())
    typer.echo(f"{output}: seed {last.seed}, {time.perf_counter() - start:.1f} s, network calls: {calls}")


def _generations(entry: ModelEntry, options: dict[str, Any]) -> list[Generation]:
    """One, or with --compare DDIM's and IV-mixed's. Raises InvalidParameter."""
    sampler = options["sampler"]
    if options["compare"] and sampler not in (None, "iv-mixed"):
        raise InvalidParameter("sampler", f"--compare runs ddim and iv-mixed; leave out --sampler {sampler}.")
    settings = {name: options[name] for name in frozenset[str]().union(*USES.values())}
    request = {
        "prompt": options["prompt"],
        "seed": options["seed"],
        "num_inference_steps": options["steps"],
        "guidance_scale": options["guidance"],
        "size": options["size"],
        "num_frames": options["frames"],
    }
    mixed = entry.resolve(_request(request, {**settings, "name": "iv-mixed" if options["compare"] else sampler}))
    if not options["compare"]:
        return [mixed]
    return [entry.resolve(_request({**request, "seed": mixed.seed}, {"name": "ddim"})), mixed]


def _request(fields: dict[str, Any], sampler: dict[str, Any]) -> VideoRequest:
    """Raises InvalidParameter."""
    try:
        return VideoRequest.model_validate({**fields, "sampler": sampler})
    except ValidationError as e:
        raise invalid_parameter(e) from e


def _generate(engine: Engine, generation: Generation, steps: Steps) -> Clip:
    with steps.step("video", generation.sampler.name) as shown:

        def show(phase: Phase, step: int, total: int) -> None:
            shown.update(f"{generation.sampler.name} {phase} {step}/{total}", step, total)

        clip = engine.generate(generation, show)
        shown.done = f"{generation.sampler.name}, {generation.total_steps} steps"
    return clip


if __name__ == "__main__":
    app(prog_name="ivmix generate")
