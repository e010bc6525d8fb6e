"""docker/: the images and the compose file against the code they run. Without a Docker daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.heartbeat_file import HeartbeatFile
from tests.container_checks import HEARTBEAT_PROBE, READY_PROBE, paths_by_port, problems, settings_of
from tests.containers import DOCKER, IMAGES, ROOT, compose, compose_containers, env_file
from tests.external_programs import run

KNOWN_KEYS = {
    *("build", "cap_drop", "command", "configs", "depends_on", "deploy", "entrypoint", "environment", "healthcheck"),
    *("image", "init", "logging", "mem_limit", "pids_limit", "ports", "profiles", "read_only", "restart"),
    *("security_opt", "shm_size", "stop_grace_period", "tmpfs", "user", "volumes"),
}
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.parametrize("image", IMAGES)
def test_dockerfile_is_clean(image: str) -> None:
    assert hadolint(IMAGES[image]) == ""


def test_hadolint_sees_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(IMAGES["ivmix-service"].read_text().replace("bookworm", "bookworm\nFROM debian", 1))
    assert "DL3006" in hadolint(wrong)  # an image without a version


def hadolint(dockerfile: Path) -> str:
    """The linter's findings."""
    ran = subprocess.run([HADOLINT, dockerfile], capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) == (ran.stdout == ""), ran.stderr
    return ran.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_as_a_number_from_pinned_bases(image: str) -> None:
    text = IMAGES[image].read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${PYTHON} AS build", "${PYTHON}"]
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)


def test_build_context_has_what_is_copied_and_no_more() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        Path(source).parts[0]
        for dockerfile in IMAGES.values()
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
        if source != "."
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize("model", ["", "animatediff"])
def test_compose_agrees_with_the_code(model: str) -> None:
    """With `--profile gpu` one variable decides what is fetched, loaded and offered."""
    document = compose(MODEL=model)
    found = [c for c in compose_containers(document) if not model or c.place != "compose.yaml worker-demo"]
    if model:
        by_place = {container.place.split()[-1]: container for container in found}
        assert by_place["worker"].arguments == ("worker", model)
        assert by_place["fetch"].arguments == ("models", "fetch", model)
        assert settings_of(by_place["api"]).models == (model,)
    assert [text for container in found for text in problems(container)] == []
    assert {c.arguments[:1] for c in found} >= {("api",), ("webhooks",), ("maintenance",), ("worker",), ("models",)}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("IVMIX_S3_BUCKET:", "IVMIX_S3_BUKET:", "IVMIX_S3_BUKET"),
        ('IVMIX_PRESIGN_SECONDS: "0"', 'IVMIX_PRESIGN_SECONDS: "-1"', "IVMIX_PRESIGN_SECONDS: Input should be greater"),
        ('command: ["webhooks"]', 'command: ["webhook"]', "`ivmix webhook` is not a command"),
        ('command: ["worker", "demo"]', 'command: ["worker", "dem"]', "there is no model dem"),
        ("/readyz'", "/ready'", "a probe requests /ready"),
        ("}:8000", "}:8080", "nothing listens on port 8080"),
    ],
)
def test_what_is_wrong_in_compose_is_seen(right: str, wrong: str, problem: str) -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert text.count(right) == 1
    document = compose(text.replace(right, wrong))
    assert problem in "\n".join(text for container in compose_containers(document) for text in problems(container))


def test_compose_services_are_hardened_and_come_back() -> None:
    document = compose()
    for name, service in document["services"].items():
        assert service.keys() <= KNOWN_KEYS, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"] == ("unless-stopped" if name not in ("bucket", "fetch") else service["restart"])
        assert re.search(r":(?!latest$)[\w.-]+$", service["image"]), name
        if name not in ("bucket", "fetch"):
            assert service["healthcheck"]["test"], name
            assert service["stop_grace_period"], name
        if service["image"].partition(":")[0] not in IMAGES:
            assert re.fullmatch(r"\d+:\d+", service["user"]), name
        for needed, condition in service.get("depends_on", {}).items():
            assert needed in document["services"]
            assert ("healthcheck" in document["services"][needed]) == (condition["condition"] == "service_healthy")


def test_every_compose_service_has_limits() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert in_bytes(service["mem_limit"]) >= 2**28, name
        assert 100 <= service["pids_limit"] <= 10_000, name
    (maxmemory,) = re.findall(r"^maxmemory (\S+)$", services["valkey"]["command"][-1], re.MULTILINE)
    assert in_bytes(services["valkey"]["mem_limit"]) >= 2 * in_bytes(maxmemory)


def in_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(mb?|gb?)", text).groups()
    return int(number) * {"m": 2**20, "g": 2**30}[unit[0]]


def test_compose_publishes_the_api_without_its_metrics() -> None:
    published = [c for c in compose_containers(compose()) if c.ports]
    assert [c.arguments for c in published] == [("api",)]
    for container in published:
        assert settings_of(container).metrics_port not in (None, *container.ports.values())
        public = paths_by_port(container)[settings_of(container).port]
        assert public("/v1/videos")
        assert not public("/metrics")


def test_workers_are_given_time_to_hand_back_their_job() -> None:
    document = compose()
    workers = [container for container in compose_containers(document) if container.arguments[:1] == ("worker",)]
    assert len(workers) == 2
    for container in workers:
        service = document["services"][container.place.split()[-1]]
        assert float(service["stop_grace_period"].rstrip("s")) >= 120 > 2 * settings_of(container).stop_grace_s


def test_the_gpu_worker_waits_for_the_weights_of_a_model_that_is_named() -> None:
    services = compose()["services"]
    assert services["worker"]["depends_on"]["fetch"] == {"condition": "service_completed_successfully"}
    assert services["worker"]["profiles"] == services["fetch"]["profiles"] == ["gpu"]
    command = [*services["fetch"]["entrypoint"], *services["fetch"]["command"]]
    ran = subprocess.run(command, env={"MODEL": ""}, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "MODEL: set it in docker/.env, for example MODEL=animatediff" in ran.stderr


def test_git_ignores_the_secrets_of_compose() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "/backup/"} <= set(ignored)  # the second: where deploy/README.md puts a copy of it
    secrets = {"VALKEY_PASSWORD", "IVMIX_S3_ACCESS_KEY_ID", "IVMIX_S3_SECRET_ACCESS_KEY"}
    assert {name for name, value in env_file(DOCKER / ".env.example").items() if not value} == {*secrets, "MODEL"}


@pytest.mark.parametrize(("age_s", "is_alive"), [(0, True), (100, True), (300, False), (None, False)])
def test_pulse_probe_looks_at_the_age_of_the_file(tmp_path: Path, age_s: int | None, is_alive: bool) -> None:
    file = tmp_path / "heartbeat_file"
    if age_s is not None:
        run("touch", "-d", f"{age_s} seconds ago", str(file))
    assert succeeds(HEARTBEAT_PROBE, file) is is_alive


def test_ready_probe_looks_at_what_a_worker_writes(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat_file"
    heartbeat_file = HeartbeatFile(file)
    assert not succeeds(READY_PROBE, file)
    for is_ready in (False, True, False):
        heartbeat_file.set_ready(is_ready=is_ready)
        heartbeat_file.beat()
        assert succeeds(READY_PROBE, file) is is_ready


def succeeds(probe: str, file: Path) -> bool:
    return subprocess.run(["sh", "-c", probe], env={"IVMIX_PULSE_FILE": str(file)}, capture_output=True).returncode == 0
