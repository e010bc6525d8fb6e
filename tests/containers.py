"""Reads the containers that docker/ and deploy/ define, from the compose file and the rendered manifests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.external_programs import kustomize, run

ROOT = Path(__file__).resolve().parents[1]
DOCKER, DEPLOY = ROOT / "docker", ROOT / "deploy"
IMAGES = {"ivmix-service": DOCKER / "service.Dockerfile", "ivmix-worker": DOCKER / "worker.Dockerfile"}
OVERLAYS = ("demo", "production", "single-gpu")

Document = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """One container of our images. `variables` are those of the image, overridden by the container's."""

    place: str
    image: str  # without registry and tag
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)
    http_probes: tuple[tuple[str | int, str], ...] = ()  # (name or number of the port, path)
    exec_probes: tuple[str, ...] = ()  # shell commands
    mounts: tuple[str, ...] = ()  # writable folders


def rendered(overlay: str) -> list[Document]:
    return list(yaml.load_all(_built(overlay), Loader=yaml.CSafeLoader))


@cache
def _built(overlay: str) -> str:
    return run(str(kustomize()), "build", str(DEPLOY / "overlays" / overlay))


def image_variables(image: str) -> dict[str, str]:
    """ENV of the Dockerfile's last stage."""
    stage = IMAGES[image].read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    lines = re.findall(r"^ENV (.*)$", stage, re.MULTILINE)
    return {name: value for line in lines for name, _, value in (pair.partition("=") for pair in line.split())}


def env_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def secret() -> dict[str, str]:
    """Contents of the Secret, with a placeholder for every empty value."""
    return {name: value or "secret" for name, value in env_file(DEPLOY / "secret.env.example").items()}


# --- compose


def compose(text: str | None = None, **variables: str) -> Document:
    """The compose file with variables from .env.example, overridden by these, and placeholders for secrets."""
    text = text or (DOCKER / "compose.yaml").read_text()
    given = env_file(DOCKER / ".env.example") | variables

    def fill(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return found[0]
        default = "secret" if found[2] is None else found[2]
        return given[found[1]] or default  # a KeyError means that .env.example lacks it

    body = "\n".join(re.sub(r"\$\$|\$\{(\w+)(?::-([^}]*)|[^}]*)\}", fill, line) for line in _without_comments(text))
    return _unescaped(yaml.safe_load(body))


def _without_comments(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _unescaped(value: Any) -> Any:
    match value:
        case str():
            return value.replace("$$", "$")
        case list():
            return [_unescaped(item) for item in value]
        case dict():
            return {name: _unescaped(item) for name, item in value.items()}
        case _:
            return value


def compose_containers(document: Document) -> Iterator[Container]:
    """Containers of our images."""
    for name, service in document["services"].items():
        image = service["image"].partition(":")[0]
        if image in IMAGES:
            test = service.get("healthcheck", {}).get("test", [])
            asked = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w*)", " ".join(test))
            entry = _program(service)
            published = [port.rpartition(":")[2] for port in service.get("ports", [])]
            yield Container(
                place=f"compose.yaml {name}",
                image=image,
                arguments=tuple(entry[1:]) if entry[0] == "ivmix" else (),
                variables={**image_variables(image), **service.get("environment", {})},
                ports={port: int(port) for port in published},
                http_probes=tuple((int(port), path) for port, path in asked),
                exec_probes=tuple(test[1:]) if test[:1] == ["CMD-SHELL"] else (),
                mounts=(
                    *(tmpfs.partition(":")[0] for tmpfs in service["tmpfs"]),
                    *(v.split(":")[1] for v in service.get("volumes", []) if not v.endswith(":ro")),
                ),
            )


def _program(service: Document) -> list[str]:
    """Command line. Of a shell that only inserts variables, the one that it runs."""
    words = [*service.get("entrypoint", ["ivmix"]), *service["command"]]
    if words[:2] != ["sh", "-c"]:
        return words
    found = re.sub(r'"\$\{(\w+):\?[^}]*\}"', lambda name: service["environment"][name[1]] or "demo", words[2])
    return shlex.split(found.removeprefix("exec "))


# --- manifests


def pod_specs(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Yield (workload, spec of its pods)."""
    for document in documents:
        if "template" in document.get("spec", {}):
            yield document, document["spec"]["template"]["spec"]


def containers_of(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def image_of(container: Document) -> str:
    return container["image"].rpartition("/")[2].partition(":")[0]


def manifest_containers(documents: list[Document]) -> Iterator[Container]:
    """Containers of our images."""
    settings = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    for workload, pod in pod_specs(documents):
        for container in containers_of(pod):
            image = image_of(container)
            if image in IMAGES:
                probes = [container[kind] for kind in container if kind.endswith("Probe")]
                yield Container(
                    place=f"{workload['kind']} {workload['metadata']['name']}, {container['name']}",
                    image=image,
                    arguments=tuple(container["args"]),
                    variables={**image_variables(image), **_variables(container, settings)},
                    ports={port["name"]: port["containerPort"] for port in container.get("ports", [])},
                    http_probes=tuple((p["httpGet"]["port"], p["httpGet"]["path"]) for p in probes if "httpGet" in p),
                    exec_probes=tuple(p["exec"]["command"][-1] for p in probes if "exec" in p),
                    mounts=tuple(m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")),
                )


def _variables(container: Document, settings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= settings[source["configMapRef"]["name"]] if "configMapRef" in source else _secret(source["secretRef"])
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = _secret(reference)[reference["key"]] if reference else variable["value"]
    return found


def _secret(reference: Mapping[str, str]) -> dict[str, str]:
    assert reference["name"] == "ivmix", f"there is no Secret {reference['name']}"
    return secret()
