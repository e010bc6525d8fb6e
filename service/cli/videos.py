"""`ivmix submit`, `list`, `get`, `wait`, `cancel` and `download`: videos on a running server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import more_settings

if TYPE_CHECKING:
    from service.cli.client import VideoClient

DEFAULT_URL = "http://127.0.0.1:8000"
SAMPLERS = "iv-mixed, ddim, zigzag, freeinit, fused, evs, official"
RENAMED = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "frames": "num_frames",
    "lora": "loras",
    "sampler": "name",
}
OF_THE_REFERENCE = {"reference_use", "conditioning_scale"}  # given with --set
NOT_SENT = {"output", "detach", "url", "api_key", "more"}
SAMPLER_OPTIONS = {
    "sampler",
    "combination",
    "order",
    "interval",
    "image_guidance",
    "video_guidance",
    "rho",
    "image_every",
    "interval_guidance",
    "goback_guidance",
    "iterations",
    "network",
    "grid",
    "solver",
    "active_steps",
    "zz",
}

Pair = tuple[float, float] | None
StepPair = tuple[int, int] | None
Url = Annotated[str, typer.Option(help="URL of the server.", envvar="IVMIX_URL")]
ApiKey = Annotated[str | None, typer.Option(help="API key, if required.", envvar="IVMIX_API_KEY", show_default=False)]
VideoId = Annotated[str, typer.Argument(metavar="VIDEO", help="Id of the video.")]
ClipSkip = Annotated[int | None, typer.Option(help="Text encoder layers to skip; 1 is Clip skip 2 elsewhere.")]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]

videos = typer.Typer()


def _sampler_option(text: str) -> Any:  # Any: Typer's own return type
    return typer.Option(help=text, rich_help_panel="Sampler (default: the model's settings)", show_default=False)


def _reference_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Picture or clip to start from", show_default=False)


@videos.command(help="Send a prompt to a running server, wait for the video and download it.")
def submit(
    prompt: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 file to write.")] = Path("video.mp4"),
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the video's id and do not wait.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Model id; default: the server's first.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: random.")] = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    frames: Annotated[int | None, typer.Option(help="num_frames.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length; sets num_frames.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the video should not show.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="NAME[:SCALE[:NETWORK]]; may be repeated.")] = None,
    clip_skip: ClipSkip = None,
    cache: Annotated[str | None, more_settings.CACHE_OPTION] = None,
    num_videos: Annotated[int | None, typer.Option(help="Several, with seeds one apart: video-1.mp4, ...")] = None,
    input_reference: Annotated[str | None, _reference_option("a picture, a clip, or the id of a video")] = None,
    strength: Annotated[float | None, _reference_option("share of the steps that runs, above 0 to 1")] = None,
    sampler: Annotated[str | None, _sampler_option(SAMPLERS)] = None,
    combination: Annotated[str | None, _sampler_option("iv-mixed: IV-IV, R-I ...")] = None,
    order: Annotated[str | None, _sampler_option("iv-mixed: denoise_first, goback_first")] = None,
    interval: Annotated[Pair, _sampler_option("active part of the run, 0 to 1")] = None,
    image_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    video_guidance: Annotated[Pair, _sampler_option("at the first and last step")] = None,
    rho: Annotated[float | None, _sampler_option("curvature of the guidance between first and last step")] = None,
    image_every: Annotated[int | None, _sampler_option("iv-mixed, evs: image model in every n-th step only")] = None,
    interval_guidance: Annotated[float | None, _sampler_option("iv-mixed: guidance in the interval")] = None,
    goback_guidance: Annotated[float | None, _sampler_option("zigzag: guidance of the inversion")] = None,
    iterations: Annotated[int | None, _sampler_option("freeinit: number of sampling runs")] = None,
    network: Annotated[str | None, _sampler_option("ddim: video, image")] = None,
    grid: Annotated[str | None, _sampler_option("ddim: adjacent, diffusers")] = None,
    solver: Annotated[str | None, _sampler_option("ddim, iv-mixed: ddim, dpmpp-2m; ddim: lcm")] = None,
    active_steps: Annotated[StepPair, _sampler_option("official: first and last step with a zig-zag, from 0")] = None,
    zz: Annotated[int | None, _sampler_option("official: no image model in every zz-th step")] = None,
    more: Annotated[list[str] | None, more_settings.OPTION] = None,
) -> None:
    _submit(locals())


@videos.command("list")
def list_videos(
    status: Annotated[
        str | None, typer.Option(help="queued, in_progress, completed, failed; several with commas.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    after: Annotated[str | None, typer.Option(help="Id of the last video of the page before.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List videos, newest first."""
    with _client(url, api_key) as client:
        page = client.list(status=status, model=model, limit=limit, after=after)
    if as_json:
        _print_json(page)
        return
    from service.cli.video_table import print_videos

    print_videos(page["data"])
    if page.get("has_more"):
        typer.echo(f"More: ivmix list --after {page['data'][-1]['id']}", err=True)


@videos.command()
def get(video: VideoId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Print a video's status and settings as JSON."""
    with _client(url, api_key) as client:
        _print_json(client.get(video))


@videos.command()
def wait(
    video: VideoId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="MP4 file to write.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Wait until a video is completed. Exits with 1 and the reason if it fails."""
    from service.cli.follow import follow

    with _client(url, api_key) as client:
        follow(client, video, output)
    typer.echo(str(output) if output else f"{video}: completed")


@videos.command()
def cancel(
    video_ids: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Ids of the videos.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Cancel videos. A running one stops after its current step; one that has ended is not changed."""
    from service.cli.follow import state_of

    with _client(url, api_key) as client:
        for video_id in video_ids:
            typer.echo(f"{video_id}: {state_of(client.cancel(video_id))}")


@videos.command()
def download(
    video: VideoId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="MP4 file to write; default: VIDEO.mp4.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Download a completed video."""
    from service.cli.follow import check_output

    path = check_output(output or Path(f"{video}.mp4"))
    with _client(url, api_key) as client:
        client.download(video, path)
    typer.echo(str(path))


def _submit_and_download(client: VideoClient, body: dict[str, Any], output: Path) -> None:
    """Prints what was made, a line for each video. Raises VideoFailedError of the last one that failed, at the end."""
    from service.cli.client import VideoFailedError
    from service.cli.follow import check_output, follow

    output = check_output(output)
    ids = _ids(client.create(body))
    typer.echo("\n".join(ids), err=True)  # at once: whatever happens to this command, the videos can be found
    failure = None
    for number, video_id in enumerate(ids, 1):
        path = output if len(ids) == 1 else output.with_stem(f"{output.stem}-{number}")
        try:
            typer.echo(_made(path, follow(client, video_id, path)))
        except VideoFailedError as e:
            failure = e
    if failure is not None:
        raise failure


def _print_ids(client: VideoClient, body: dict[str, Any]) -> None:
    typer.echo("\n".join(_ids(client.create(body))))


def _ids(created: dict[str, Any]) -> list[str]:
    return created.get("video_ids") or [created["id"]]


def _made(output: Path, video: dict[str, Any]) -> str:
    # Other servers may not return these.
    facts = {"seed": video.get("seed"), "seconds of inference": video.get("inference_time_s")}
    return ", ".join([str(output), *(f"{name} {value}" for name, value in facts.items() if value is not None)])


def _submit(options: dict[str, Any]) -> None:
    body = _request(options)
    with _client(options["url"], options["api_key"]) as client:
        _print_ids(client, body) if options["detach"] else _submit_and_download(client, body, options["output"])


def _request(options: dict[str, Any]) -> dict[str, Any]:
    """The API's request of the given options; the server's defaults for all others."""
    given = {name: value for name, value in options.items() if value is not None and name not in NOT_SENT}
    body = {RENAMED.get(name, name): value for name, value in given.items() if name not in SAMPLER_OPTIONS}
    if "input_reference" in body:
        body["input_reference"] = _file_or_id(body["input_reference"])
    sampler = {RENAMED.get(name, name): value for name, value in given.items() if name in SAMPLER_OPTIONS}
    more = more_settings.read(options["more"])
    body |= {name: value for name, value in more.items() if name in OF_THE_REFERENCE}
    sampler |= {name: value for name, value in more.items() if name not in OF_THE_REFERENCE}
    return body | ({"sampler": sampler} if sampler else {})


def _file_or_id(value: str) -> Path | str:
    """Raises BadParameter if it is neither."""
    path = Path(value)
    if path.is_file():
        return path
    if re.fullmatch(r"video_[0-9a-f]{32}", value):
        return value
    raise typer.BadParameter(f"'{value}' is neither a file nor a video's id", param_hint="--input-reference")


def _client(url: str, api_key: str | None) -> VideoClient:
    from service.cli.client import VideoClient  # loads an HTTP client, for which --help must not wait

    return VideoClient(url, api_key=api_key)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
