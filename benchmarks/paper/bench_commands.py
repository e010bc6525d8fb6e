"""`ivmix bench NAME` makes clips and features of a benchmark, `ivmix bench table DIR` prints what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.features_command import features
from benchmarks.paper.fetch_command import fetch
from benchmarks.paper.protocols import Protocol, protocol, protocols
from service.errors import InvalidParameter
from service.process.quick_imports import quick_imports

if TYPE_CHECKING:
    from benchmarks.paper.arms import Arm, Fields
    from benchmarks.paper.generate import Task
    from benchmarks.paper.makers import Maker
    from benchmarks.paper.networks import ClipNetwork
    from benchmarks.paper.prompts import PromptList
    from benchmarks.paper.results import Question
    from benchmarks.paper.run_folder import Run

DEFAULT_ARMS = "ddim,freeinit,iv-mixed"
LOCAL = "local"

Data = Annotated[
    Path | None, typer.Option(help="Folder of downloads. Default: bench in IVMIX_WEIGHTS_DIR.", show_default=False)
]
PromptFile = Annotated[
    Path | None, typer.Option(help="Another list: JSON, or a prompt per line. Default: the benchmark's.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")]
Clips = Annotated[int | None, typer.Option(min=1, help="Clips of each prompt. Default: the benchmark's.")]
Device = Annotated[str, typer.Option(help="Of the feature network: cpu, cuda.")]
Frames = Annotated[str, typer.Option(help="What is measured: mp4, or mkv, the lossless copy.")]


def register(app: typer.Typer) -> None:
    for name, found in protocols().items():
        app.command(name, help=found.title)(_command_of(name))
    app.command("fetch")(fetch)
    app.command("features")(features)
    app.command("table")(table)


def _command_of(name: str) -> Callable[..., None]:
    def run(
        out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run; an earlier one goes on.")],
        model: Annotated[str | None, typer.Option(help="Model id. Default: the benchmark's.")] = None,
        arms: Annotated[str, typer.Option(help="Samplers with commas; NAME-matched: for as many network calls.")] = "",
        ablation: Annotated[
            list[str] | None, typer.Option(help="intervals, combinations, renoise, guidance; may be repeated.")
        ] = None,
        arm: Annotated[
            list[str] | None, typer.Option(metavar="NAME=JSON", help="An arm of your own: fields of a request.")
        ] = None,
        clips: Clips = None,
        via: Annotated[str, typer.Option(metavar="local|URL", help="This process, or a running service.")] = LOCAL,
        api_key: Annotated[str | None, typer.Option(envvar="IVMIX_API_KEY", show_default=False)] = None,
        shard: Annotated[str, typer.Option(metavar="i/n", help="Part i of n, from 0.")] = "0/1",
        prompts: PromptFile = None,
        limit: Limit = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A request field of all arms.")
        ] = None,
        batch: Annotated[int, typer.Option(min=1, help="Clips that are sampled together, with --via local.")] = 1,
        lossless: Annotated[bool, typer.Option("--lossless", help="Keep a lossless copy of each clip.")] = False,
        cut_prompts: Annotated[bool, typer.Option("--cut-prompts", help="Cut prompts that are too long.")] = False,
        features: Annotated[bool, typer.Option(help="Compute the features of the clips too.")] = True,
        data: Data = None,
        device: Device = "cpu",
    ) -> None:
        _run(protocol(name), {key: value for key, value in locals().items() if key != "name"})

    return run


def _run(found: Protocol, options: dict[str, Any]) -> None:
    """`options` are those of the command. Raises ServiceError, RequestError, VideoFailedError."""
    from benchmarks.paper.feature_cache import complete
    from benchmarks.paper.generate import Progress, generate
    from benchmarks.paper.prompts import prompts_of
    from benchmarks.paper.run_folder import RunFolder

    data, folder = data_folder(options["data"]), RunFolder(options["out"])
    prompts = prompts_of(found, data, options["prompts"]).first(options["limit"])
    network = open_network(found, data, options["device"]) if options["features"] else None
    with _maker(found, prompts, options) as maker:
        task = _task(found, prompts, maker, options)
        maker.check_prompts(prompts.prompts)
        folder.open_run(_identity(found, prompts, maker, options))
        for arm in task.arms:
            folder.open_arm(arm)
        made = generate(folder, task, maker, Progress())
    typer.echo(f"{made} clips made in {folder.root}")
    if network is not None:
        typer.echo(f"{complete(folder, task.keys(), network, 'mp4')} clips have features of {network.name}")


@contextmanager
def _maker(found: Protocol, prompts: PromptList, options: Mapping[str, Any]) -> Iterator[Maker]:
    model = options["model"] or found.model
    if options["via"] == LOCAL:
        with quick_imports():
            from benchmarks.paper.local_maker import LocalMaker

        yield LocalMaker(model, cut_prompts=options["cut_prompts"])
        return
    from benchmarks.paper.service_maker import ServiceMaker

    for name in ("lossless", "cut_prompts"):
        if options[name]:
            option = f"--{name.replace('_', '-')}"
            raise InvalidParameter(name, f"{option} works with --via local only: a service has neither option.")
    sample = prompts.prompts[0].text
    with ServiceMaker(
        options["via"], model, api_key=options["api_key"], benchmark=found.name, sample_prompt=sample
    ) as maker:
        yield maker


def _task(found: Protocol, prompts: PromptList, maker: Maker, options: Mapping[str, Any]) -> Task:
    from benchmarks.paper.generate import Shard, Task

    return Task(
        benchmark=found.name,
        prompts=prompts.prompts,
        arms=_arms(found, maker, options),
        clips=_clips(found, options["clips"]),
        batch=options["batch"] if options["via"] == LOCAL else 1,
        shard=Shard.parse(options["shard"]),
        keep_lossless=options["lossless"],
    )


def _arms(found: Protocol, maker: Maker, options: Mapping[str, Any]) -> list[Arm]:
    from benchmarks.paper.arms import ablation, choose, given_arms

    extra = given_arms(options["arm"] or ())
    for name in options["ablation"] or ():
        extra |= ablation(name, maker.own_settings())
    default = "iv-mixed" if extra else DEFAULT_ARMS
    names = [name.strip() for name in (options["arms"] or default).split(",")]
    return choose(names, extra, _request(found, options["set_"] or ()), maker.network_calls)


def _request(found: Protocol, given: list[str] | tuple[str, ...]) -> Fields:
    """The fields of all arms: the protocol's, and those of --set."""
    from benchmarks.paper.results import base_request

    fields = base_request(found)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name in ("prompt", "seed"):
            raise InvalidParameter("set", f"--set {text}: it must be NAME=VALUE, a request field but prompt and seed.")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value  # a word, such as 512x512
    return fields


def _clips(found: Protocol, given: int | None) -> int:
    clips = given or found.clips.value
    if clips is None:
        raise InvalidParameter("clips", f"Clips per prompt of {found.name} are not known; give --clips.")
    return clips


def _identity(found: Protocol, prompts: PromptList, maker: Maker, options: Mapping[str, Any]) -> Run:
    from benchmarks.paper.run_folder import Run

    return Run(
        benchmark=found.name,
        protocol=found.digest,
        model=maker.model,
        weights=maker.weights,
        prompts=prompts.digest,
        prompts_file=prompts.sha256,
        n=len(prompts.prompts),
        request=_request(found, options["set_"] or ()),
        cut_prompts=options["cut_prompts"],
        batch=options["batch"] if options["via"] == LOCAL else 1,
    )


def table(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    clips: Clips = None,
    arms: Annotated[str | None, typer.Option(help="Only these, with commas.")] = None,
    prompts: PromptFile = None,
    limit: Limit = None,
    frames: Frames = "mp4",
    permutations: Annotated[int, typer.Option(min=1, help="Of each paired test.")] = 999,
    html: Annotated[bool, typer.Option(help="Write table.html, with plots and contact sheets.")] = True,
    data: Data = None,
    device: Device = "cpu",
) -> None:
    """Print the table of a run, and write table.txt, table.json and table.html into its folder."""
    from benchmarks.paper.results import results
    from benchmarks.paper.run_folder import RunFolder
    from benchmarks.paper.table import seconds, sections, text

    run_folder, places = RunFolder(folder), data_folder(data)
    found = protocol(run_folder.run.benchmark)
    question = _question(found, places, run_folder.run.n, locals())
    network = open_network(found, places, device)
    answer = results(run_folder, question, network)
    run_folder.write_json(folder / "table.json", answer)
    printed = text(sections(answer))
    run_folder.write(folder / "table.txt", printed.encode())
    typer.echo(printed)
    typer.echo(text(seconds(answer)))
    if html:
        from benchmarks.paper.html_page import page

        run_folder.write(folder / "table.html", page(run_folder, question, network, answer).encode())
        typer.echo(f"{folder / 'table.html'} has plots and contact sheets.")


def _question(found: Protocol, data: Path, n: int, options: Mapping[str, Any]) -> Question:
    """`n` is the number of prompts of the run, of which --limit may ask for fewer."""
    from benchmarks.paper.prompts import prompts_of
    from benchmarks.paper.results import Question

    if options["frames"] not in ("mp4", "mkv"):
        raise BenchmarkError(f"--frames {options['frames']}: it is mp4 or mkv")
    prompts = prompts_of(found, data, options["prompts"])
    prompts = prompts.first(min(n, len(prompts.prompts)))
    return Question(
        protocol=found,
        prompts=prompts,
        first=len(prompts.first(options["limit"]).prompts),
        clips=_clips(found, options["clips"]),
        arms=None if options["arms"] is None else [name.strip() for name in cast(str, options["arms"]).split(",")],
        suffix=options["frames"],
        permutations=options["permutations"],
    )


def data_folder(given: Path | None) -> Path:
    if given is not None:
        return given
    from service.settings import load_settings

    return load_settings().weights_dir / "bench"


def open_network(found: Protocol, data: Path, device: str) -> ClipNetwork:
    """Raises BenchmarkError if its weights are missing or do not fit."""
    if found.network.value == "judges":
        from benchmarks.paper.demo_world import JudgeNetwork

        return JudgeNetwork()
    from benchmarks.paper.published_networks import PublishedNetwork

    return PublishedNetwork(found, data, device)
