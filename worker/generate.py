"""`ivmix generate "prompt" -o out.mp4`: run the engine in this process, without server, queue and storage."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from service.catalog.invalid_parameter import invalid_parameter
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.cli import more_settings
from service.cli.console import Steps
from service.cli.errors import user_errors
from service.errors import InvalidParameter, ServiceError
from service.jobs.consecutive_seeds import generations_of
from service.jobs.model import Generation, Phase
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES
from service.process.quick_imports import quick_imports
from service.references import Limits, sanitise
from service.settings import load_settings
from worker.compare import SAMPLERS, ComparedClip, compared_samplers, write_comparison

if TYPE_CHECKING:
    from worker.child.clip import Clip
    from worker.child.engine import Engine

Pair = tuple[float, float] | None
StepPair = tuple[int, int] | None
COMPARE_HELP = f"Two or more samplers side by side, from the same seed: {', '.join(sorted(SAMPLERS))}."
SETTINGS = frozenset[str]().union(*USES.values())  # options of this name, or of --set
OPTIONS = {  # all other options, and the fields of the request that they are
    "prompt": "prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "size": "size",
    "frames": "num_frames",
    "lora": "loras",
    "clip_skip": "clip_skip",
    "cache": "cache",
    "strength": "strength",
    "reference_use": "reference_use",
    "conditioning_scale": "conditioning_scale",
}


def _sampler_option(text: str) -> Any:  # Any: Typer's own return type
    return typer.Option(help=text, rich_help_panel="Sampler (default: the model's settings)")


def _reference_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Picture or clip to start from")


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
    lora: Annotated[list[str] | None, typer.Option(help="NAME[:SCALE[:NETWORK]]; may be repeated.")] = None,
    clip_skip: Annotated[int | None, typer.Option(min=0, help="1: Clip skip 2 elsewhere.")] = None,
    cache: Annotated[str | None, more_settings.CACHE_OPTION] = None,
    num_videos: Annotated[int, typer.Option(min=1, help="Several, with seeds one apart: video-1.mp4, ...")] = 1,
    input_reference: Annotated[Path | None, _reference_option("PNG, JPEG, WebP, MP4, WebM or MOV file")] = None,
    strength: Annotated[float | None, _reference_option("share of the steps that runs, above 0 to 1")] = None,
    reference_use: Annotated[str | None, _reference_option("start, first_frame")] = None,
    conditioning_scale: Annotated[float | None, _reference_option("first_frame: how much it counts, 0 to 2")] = None,
    compare: Annotated[str | None, typer.Option(metavar="SAMPLER,SAMPLER", help=COMPARE_HELP)] = None,
    sampler: Annotated[str | None, _sampler_option(", ".join(USES))] = None,
    combination: Annotated[str | None, _sampler_option("IV-IV, R-I ...")] = None,
    order: Annotated[str | None, _sampler_option("denoise_first, goback_first")] = None,
    interval: Annotated[Pair, _sampler_option("active part of the run, 0 to 1")] = None,
    image_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    video_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    rho: Annotated[float | None, _sampler_option("curvature of the guidance between first and last step")] = None,
    image_every: Annotated[int | None, _sampler_option("image model in every n-th step")] = None,
    interval_guidance: Annotated[float | None, _sampler_option("iv-mixed: guidance in the interval")] = None,
    goback_guidance: Annotated[float | None, _sampler_option("zigzag")] = None,
    iterations: Annotated[int | None, _sampler_option("freeinit")] = None,
    network: Annotated[str | None, _sampler_option("ddim: video, image")] = None,
    grid: Annotated[str | None, _sampler_option("ddim: adjacent, diffusers")] = None,
    solver: Annotated[str | None, _sampler_option("of the ordinary steps, ddim and iv-mixed: ddim, dpmpp-2m")] = None,
    active_steps: Annotated[StepPair, _sampler_option("official: first and last step with a zig-zag, from 0")] = None,
    zz: Annotated[int | None, _sampler_option("official: no image model in every zz-th step")] = None,
    more: Annotated[list[str] | None, more_settings.OPTION] = None,
) -> None:
    """Generate a video without a server."""
    _run(locals())


def _run(options: dict[str, Any]) -> None:
    """`options` are those of `generate`. Raises ServiceError, RequestError."""
    from service.cli.follow import check_output  # it loads an HTTP client

    entry, output = ModelRegistry.of(load_settings()).get(options["model"]), check_output(options["output"])
    with tempfile.TemporaryDirectory(prefix="ivmix-") as folder:
        reference = _reference(options["input_reference"], Path(folder))
        _write(entry, output, options, reference)


def _reference(file: Path | None, folder: Path) -> tuple[Path, ReferenceFile] | None:
    """What a server would store of the file. Raises InvalidParameter."""
    if file is None:
        return None
    if not file.is_file():
        raise InvalidParameter("input_reference", f"--input-reference {file} is no file.")
    stored = folder / "reference"
    return stored, sanitise(file, stored, Limits.of(load_settings()))


def _write(
    entry: ModelEntry, output: Path, options: dict[str, Any], reference: tuple[Path, ReferenceFile] | None
) -> None:
    generations = _generations(entry, options, reference[1] if reference else None)
    steps = Steps(Console(stderr=True))
    with steps.step("models", f"loading {entry.id}") as step:
        # --help and refused options answer without loading torch and diffusers, which takes seconds.
        with quick_imports():
            from worker.child import mp4
            from worker.child.engine import Engine
            from worker.child.tuning.start import use_stored

        engine = Engine(entry)
        use_stored(engine, entry, load_settings())
        if options["compare"]:  # first what every sampler needs once, or it would count as the time of the first one
            engine.warm_up(entry.default_generation)
        step.done = f"{entry.id} on {engine.device_name}"
    file, first = reference[0] if reference else None, next(iter(generations.values()))
    if options["compare"]:
        arms = [_arm(engine, name, generation, steps, file) for name, generation in generations.items()]
        write_comparison(arms, output, fps=first.fps)
        _report(output, first, *arms)
        return
    count = options["num_videos"]
    for number, generation in enumerate(generations_of(first, count), 1):
        path = output if count == 1 else output.with_stem(f"{output.stem}-{number}")
        arm = _arm(engine, generation.sampler.name, generation, steps, file)
        mp4.write_mp4(arm.frames, path, fps=generation.fps)
        _report(path, generation, arm)


def _report(output: Path, generation: Generation, *arms: ComparedClip) -> None:
    typer.echo(f"{output}: seed {generation.seed}" + "".join(f"\n  {arm.sampler}: {arm.cost}" for arm in arms))


def _generations(entry: ModelEntry, options: dict[str, Any], reference: ReferenceFile | None) -> dict[str, Generation]:
    """One, or with --compare one for each of its samplers, from one seed. Raises InvalidParameter."""
    settings = {name: options[name] for name in SETTINGS if options.get(name) is not None}
    settings |= more_settings.read(options["more"])
    request = {field: options[option] for option, field in OPTIONS.items()}
    request["input_reference"] = reference
    if options["compare"] is None:
        generation = entry.resolve(_request(request, {**settings, "name": options["sampler"]}))
        return {generation.sampler.name: generation}
    if options["sampler"] is not None:
        raise InvalidParameter("sampler", f"--compare names its samplers; leave out --sampler {options['sampler']}.")
    if options["num_videos"] > 1:
        message = f"--compare makes one video; leave out --num-videos {options['num_videos']}."
        raise InvalidParameter("num_videos", message)
    generations: dict[str, Generation] = {}
    for name, sampler in compared_samplers(options["compare"], settings, entry.family).items():
        generations[name] = entry.resolve(_request(request, sampler))
        request["seed"] = generations[name].seed
    return generations


def _request(fields: dict[str, Any], sampler: dict[str, Any]) -> VideoRequest:
    """Raises InvalidParameter."""
    try:
        return VideoRequest.model_validate({**fields, "sampler": sampler})
    except ValidationError as e:
        raise invalid_parameter(e) from e


def _arm(engine: Engine, name: str, generation: Generation, steps: Steps, reference: Path | None) -> ComparedClip:
    start = time.perf_counter()
    frames = _generate(engine, name, generation, steps, reference).frames.numpy()
    return ComparedClip(name, frames, generation.network_calls, time.perf_counter() - start)


def _generate(engine: Engine, name: str, generation: Generation, steps: Steps, reference: Path | None = None) -> Clip:
    with steps.step("video", name) as shown:

        def show(phase: Phase, step: int, total: int) -> None:
            shown.update(f"{name} {phase} {step}/{total}", step, total)

        try:
            clip = engine.generate(generation, show, reference=reference)
        except Exception as e:
            from worker.child.failures import expected_failure

            if failed := expected_failure(e):
                raise ServiceError(failed.message) from e
            raise
        note = more_settings.note(generation.approximations, is_experimental=generation.is_experimental)
        shown.done = f"{name}, {generation.total_steps} steps{note}"
    return clip


if __name__ == "__main__":
    with user_errors():
        app(prog_name="ivmix generate")
