"""What has to hold between the containers that are started and the code that runs in them. Each function tells what is
wrong, in words; nothing wrong is an empty list."""

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

Has = Callable[[str], bool]  # whether a path is there

# Of other programs in our images.
FOREIGN = {
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "HOME",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_VISIBLE_DEVICES",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
    "TRANSFORMERS_OFFLINE",
    "VALKEY_PASSWORD",
    "XDG_CACHE_HOME",
}
PULSE_PROBE = 'test -n "$(find "$IVMIX_PULSE_FILE" -mmin -2)"'
PULSING = {"worker", "webhooks", "maintenance"}


def complaints(container: Container) -> list[str]:
    found = [*_variables(container), *_command(container)]
    if not found:  # the others ask the settings
        found = [text for check in (_models, _ports, _probes, _folders) for text in check(container)]
    return [f"{container.place}: {text}" for text in found]


def settings_of(container: Container) -> Settings:
    ours = {name: value for name, value in container.variables.items() if name.startswith(PREFIX)}
    return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in ours.items()})


def _variables(container: Container) -> Iterator[str]:
    for name in sorted(container.variables.keys() - FOREIGN):
        if not name.startswith(PREFIX):
            yield f"{name} is nobody's variable"
    try:
        settings_of(container)
    except ValidationError as e:
        for error in e.errors():
            yield f"{PREFIX}{str(error['loc'][0] if error['loc'] else '').upper()}: {error['msg']}"


def _command(container: Container) -> Iterator[str]:
    if not container.arguments:  # some other program of the image
        return
    answer = CliRunner().invoke(cli, [*container.arguments, "--help"])  # eager: nothing is done
    if answer.exit_code != 0:
        yield f"`ivmix {' '.join(container.arguments)}` is no command"


def _models(container: Container) -> Iterator[str]:
    known = ModelRegistry.load().known
    offered = [name for name in container.variables.get(f"{PREFIX}MODELS", "").split(",") if name]
    wanted = container.arguments[-1:] if container.arguments[:1] in [("worker",), ("models",)] else ()
    for name in {*offered, *wanted} - known.keys():
        yield f"there is no model {name}"
    for name in wanted:
        if offered and name not in offered:
            yield f"the API does not offer {name}"


def _listening(container: Container) -> dict[int, Has]:
    """What answers on which port."""
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
    listening = _listening(container)
    for name, port in container.ports.items():
        if port not in listening:
            yield f"nobody listens on port {name}, {port}"
        elif name == "metrics" and not listening[port]("/metrics"):
            yield f"there is no /metrics on port {port}"


def _probes(container: Container) -> Iterator[str]:
    listening = _listening(container)
    for port, path in container.asked:
        number = port if isinstance(port, int) else container.ports.get(port, 0)
        if number not in listening or not listening[number](path):
            yield f"a probe asks for {path} on port {port}, which is not there"
    for program in container.programs:
        if program != PULSE_PROBE:
            yield f"a probe runs {program}"
        elif container.arguments[0] not in PULSING or f"{PREFIX}PULSE_FILE" not in container.variables:
            yield "a probe looks for a heartbeat_file that is not there"


def _folders(container: Container) -> Iterator[str]:
    """The root is read-only."""
    if container.arguments[:1] not in [("worker",), ("models",)] and container.arguments[:1] not in PULSING:
        return
    settings = settings_of(container)
    wanted: list[Path | None] = [settings.pulse_file]
    wanted += [settings.scratch_folder] if container.arguments[0] == "worker" else []
    wanted += [settings.weights_dir] if container.arguments[:2] == ("models", "fetch") else []
    wanted += [settings.data_dir] if container.arguments[0] in PULSING and settings.storage == "file" else []
    for folder in wanted:
        if folder is not None and not any(folder.is_relative_to(mount) for mount in container.mounts):
            yield f"{folder} cannot be written"


@cache
def _applications(has_operations: bool) -> tuple[Has, Has]:
    """The application, and the one on the metrics' port. Connects to nobody."""
    settings = Settings(
        redis_url="redis://127.0.0.1:1",
        data_dir=Path(gettempdir()),
        metrics_port=1 if has_operations else None,
    )
    app = create_app(open_services(settings))
    return _has(app), _has(create_operations_app(app))


def _has(app: FastAPI) -> Has:
    def has(path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b""}
        return any(route.matches(scope.copy())[0] is Match.FULL for route in app.routes)

    return has
