"""Checks containers of docker/ and deploy/ against the code that runs in them. Every check yields error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import gettempdir

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.routing import Match
from typer.testing import CliRunner

from service.api.app import create_app, create_operations_app
from service.catalog.registry import ModelRegistry
from service.cli.main import app as cli
from service.settings import PREFIX, Settings
from service.wiring import open_services
from tests.containers import Container

HasPath = Callable[[str], bool]

# Variables of other programs in our images.
THIRD_PARTY = {
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "HOME",
    "MODEL",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_VISIBLE_DEVICES",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
    "TRANSFORMERS_OFFLINE",
    "VALKEY_PASSWORD",
    "XDG_CACHE_HOME",
}
HEARTBEAT_PROBE = 'test -n "$(find "$IVMIX_PULSE_FILE" -mmin -2)"'
READY_PROBE = 'grep -qx ready "$IVMIX_PULSE_FILE"'
READY_PROBES = {READY_PROBE, f"{READY_PROBE} && {HEARTBEAT_PROBE}"}
HAVE_HEARTBEAT = {"worker", "webhooks", "maintenance"}


def problems(container: Container) -> list[str]:
    found = [*_variables(container), *_command(container)]
    if not found:  # the other checks need valid settings
        found = [text for check in (_models, _ports, _probes, _folders) for text in check(container)]
    return [f"{container.place}: {text}" for text in found]


def settings_of(container: Container) -> Settings:
    ours = {name: value for name, value in container.variables.items() if name.startswith(PREFIX)}
    return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in ours.items()})


def _variables(container: Container) -> Iterator[str]:
    for name in sorted(container.variables.keys() - THIRD_PARTY):
        if not name.startswith(PREFIX):
            yield f"{name} is not a known variable"
    try:
        settings_of(container)
    except ValidationError as e:
        for error in e.errors():
            yield f"{PREFIX}{str(error['loc'][0] if error['loc'] else '').upper()}: {error['msg']}"


def _command(container: Container) -> Iterator[str]:
    if not container.arguments:  # runs another program of the image
        return
    answer = CliRunner().invoke(cli, [*container.arguments, "--help"])  # --help is eager: the command does not run
    if answer.exit_code != 0:
        yield f"`ivmix {' '.join(container.arguments)}` is not a command"


def _models(container: Container) -> Iterator[str]:
    known = ModelRegistry.load().known
    offered = [name for name in container.variables.get(f"{PREFIX}MODELS", "").split(",") if name]
    given = [argument for argument in container.arguments if not argument.startswith("--")]
    wanted = {"worker": given[1:2], "models": given[-1:]}.get(container.arguments[0], []) if given else []
    for name in {*offered, *wanted} - known.keys():
        yield f"there is no model {name}"
    for name in wanted:
        if offered and name not in offered:
            yield f"the API does not offer {name}"


def paths_by_port(container: Container) -> dict[int, HasPath]:
    """Port -> the paths that it serves."""
    settings = settings_of(container)
    match container.arguments[:1]:
        case ("api",):
            public, operations = _applications(settings.metrics_port is not None)
            own_port = {} if settings.metrics_port is None else {settings.metrics_port: operations}
            return {settings.port: public, **own_port}
        case ("worker",):
            return {} if settings.worker_metrics_port is None else {settings.worker_metrics_port: "/metrics".__eq__}
        case ("webhooks",):
            return {} if settings.webhook_metrics_port is None else {settings.webhook_metrics_port: "/metrics".__eq__}
        case _:
            return {}


def _ports(container: Container) -> Iterator[str]:
    listening = paths_by_port(container)
    for name, port in container.ports.items():
        if port not in listening:
            yield f"nothing listens on port {name}, {port}"
        elif name == "metrics" and not listening[port]("/metrics"):
            yield f"there is no /metrics on port {port}"


def _probes(container: Container) -> Iterator[str]:
    listening = paths_by_port(container)
    for port, path in container.http_probes:
        number = port if isinstance(port, int) else container.ports.get(port, 0)
        if number not in listening or not listening[number](path):
            yield f"a probe requests {path} on port {port}, which does not exist"
    for program in container.exec_probes:
        if program not in {HEARTBEAT_PROBE, *READY_PROBES}:
            yield f"a probe runs {program}"
        elif program in READY_PROBES and container.arguments[0] != "worker":
            yield "only a worker's heartbeat file contains whether it is ready"
        elif container.arguments[0] not in HAVE_HEARTBEAT or f"{PREFIX}PULSE_FILE" not in container.variables:
            yield "a probe checks a heartbeat file that the program does not write"


def _folders(container: Container) -> Iterator[str]:
    """Every folder that the program writes is a writable mount: the root file system is read-only."""
    if container.arguments[:1] not in [("worker",), ("models",)] and container.arguments[:1] not in HAVE_HEARTBEAT:
        return
    settings = settings_of(container)
    wanted: list[Path | None] = [settings.pulse_file]
    wanted += [settings.scratch_folder] if container.arguments[0] == "worker" else []
    wanted += [settings.weights_dir] if container.arguments[:2] == ("models", "fetch") else []
    wanted += [settings.data_dir] if container.arguments[0] in HAVE_HEARTBEAT and settings.storage == "file" else []
    for folder in wanted:
        if folder is not None and not any(folder.is_relative_to(mount) for mount in container.mounts):
            yield f"{folder} is not writable"


@cache
def _applications(has_operations: bool) -> tuple[HasPath, HasPath]:
    """The API and the metrics application, without connections."""
    settings = Settings(
        redis_url="redis://127.0.0.1:1",
        data_dir=Path(gettempdir()),
        metrics_port=1 if has_operations else None,
    )
    app = create_app(open_services(settings))
    return _paths_of(app), _paths_of(create_operations_app(app))


def _paths_of(app: FastAPI) -> HasPath:
    def has(path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b""}
        return any(route.matches(scope.copy())[0] is Match.FULL for route in app.routes)

    return has
