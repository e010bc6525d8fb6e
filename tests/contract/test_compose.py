"""docker/compose.yaml as Docker Compose itself reads it, which needs no engine for that."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.containers import DOCKER, compose, env_file


def compose_program() -> list[str]:
    """Docker Compose 2 or newer, as a plug-in of docker or by itself."""
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]):
            ran = subprocess.run([*program, "version", "--short"], capture_output=True, text=True, check=False)
            if ran.returncode == 0 and int(ran.stdout.strip().removeprefix("v").split(".")[0]) >= 2:
                return program
    pytest.skip("there is no Docker Compose 2, so only our own reading of compose.yaml is checked")


def read(folder: Path, *profiles: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = env_file(DOCKER / ".env.example") | variables
    file = folder / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    options = [f"--profile={name}" for name in profiles]
    command = [*compose_program(), "-f", str(DOCKER / "compose.yaml"), "--env-file", str(file), *options]
    return subprocess.run([*command, "config", "--format=json"], capture_output=True, text=True, check=False)


SECRETS = dict.fromkeys(("VALKEY_PASSWORD", "IVMIX_S3_ACCESS_KEY_ID", "IVMIX_S3_SECRET_ACCESS_KEY"), "secret")


@pytest.mark.parametrize(("profile", "model"), [("demo", ""), ("gpu", "animatediff")])
def test_compose_reads_what_the_other_tests_read(tmp_path: Path, profile: str, model: str) -> None:
    ran = read(tmp_path, profile, MODEL=model, **SECRETS)
    assert ran.returncode == 0, ran.stderr
    ours: dict[str, Any] = compose(MODEL=model)["services"]
    read_services: dict[str, Any] = json.loads(ran.stdout)["services"]
    assert read_services.keys() == {
        name for name, service in ours.items() if service.get("profiles", [profile]) == [profile]
    }
    for name, service in read_services.items():
        assert [word.replace("$$", "$") for word in service["command"] or []] == ours[name]["command"], name
        assert service.get("environment", {}) == ours[name].get("environment", {}), name
        assert service["read_only"] is True
        assert service["pids_limit"] == ours[name]["pids_limit"]


def test_compose_asks_for_the_secrets(tmp_path: Path) -> None:
    ran = read(tmp_path, "demo")
    assert ran.returncode != 0
    assert "set it in docker/.env" in ran.stderr
