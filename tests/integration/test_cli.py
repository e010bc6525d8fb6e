"""The command line as a person uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.commands import ivmix_here
from tests.processes import PROMPT, clean_environment, ivmix_up, wait_for
from worker.child.mp4 import read_mp4


def ivmix(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def here(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Like `ivmix`, in this process."""
    return ivmix_here(*arguments, cwd=cwd, environment=clean_environment() | environment)


@pytest.mark.parametrize("command", ["generate", "submit"])
def test_help_shows_the_options(command: str, tmp_path: Path) -> None:
    run = ivmix(command, "--help", cwd=tmp_path)
    assert run.returncode == 0
    assert "--seed" in run.stdout


def test_prompt_that_cannot_be_drawn_is_one_clear_sentence(tmp_path: Path) -> None:
    run = ivmix("generate", "a horse", cwd=tmp_path)
    assert run.returncode == 1
    assert "'horse'" in run.stderr
    assert "circle, square or triangle" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_server_and_generate_without_one_make_the_same_video(demo_server: str, tmp_path: Path) -> None:
    url, request = demo_server, (PROMPT, "--steps", "2", "--seed", "5")
    run = ivmix("submit", *request, "-o", "out.mp4", "--url", url, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    alone = ivmix("generate", *request, "-o", "alone.mp4", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert "seed 5" in alone.stdout
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()
    refused = ivmix("submit", "a horse", "--url", url, cwd=tmp_path)
    taken = ivmix("up", "--port", url.rpartition(":")[2], "--data", str(tmp_path / "other"), cwd=tmp_path)
    assert read_mp4(tmp_path / "out.mp4").shape == (8, 384, 384, 3)
    assert (refused.returncode, "'horse'" in refused.stderr) == (1, True)
    assert (taken.returncode, "is in use" in taken.stderr) == (1, True)


def test_submit_without_a_server_says_where_it_looked(tmp_path: Path) -> None:
    run = here("submit", PROMPT, "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert run.returncode == 1
    assert "http://127.0.0.1:9" in run.stderr
    assert "Traceback" not in run.stderr


def test_worker_without_redis_says_what_to_set(tmp_path: Path) -> None:
    run = ivmix("worker", cwd=tmp_path)
    assert run.returncode == 1
    assert "IVMIX_REDIS_URL" in run.stderr
    assert "Traceback" not in run.stderr


class TestKeys:
    def test_a_key_is_made_used_listed_and_revoked_while_a_server_runs(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        with ivmix_up(data, "--workers", "0", IVMIX_AUTH="keys") as (_, url), httpx2.Client(base_url=url) as http:
            made = ivmix(
                "keys", "create", "--name", "dash", "--scopes", "videos.read", cwd=tmp_path, IVMIX_DATA_DIR=str(data)
            )
            secret = made.stdout.strip()
            assert secret.startswith("ivmix_"), made.stderr
            assert http.get("/v1/videos").status_code == 401
            headers = {"authorization": f"Bearer {secret}"}
            assert http.get("/v1/videos", headers=headers).status_code == 200
            refused = ivmix("submit", PROMPT, "--url", f"{url}/v1", "--api-key", secret, cwd=tmp_path)
            assert (refused.returncode, "videos.write" in refused.stderr) == (1, True)
            listed = ivmix("keys", "list", cwd=tmp_path, IVMIX_DATA_DIR=str(data)).stdout
            assert ("dash" in listed, secret in listed) == (True, False)
            key_id = next(word for word in listed.split() if word.startswith("key_"))
            assert ivmix("keys", "revoke", key_id, cwd=tmp_path, IVMIX_DATA_DIR=str(data)).returncode == 0
            wait_for(lambda: http.get("/v1/videos", headers=headers).status_code == 401 or None, timeout_s=30)

    def test_keys_can_be_made_before_anything_runs(self, tmp_path: Path) -> None:
        made = here("keys", "create", "--name", "a", cwd=tmp_path, IVMIX_DATA_DIR=str(tmp_path))
        assert made.returncode == 0, made.stderr
        listed = ivmix("keys", "list", cwd=tmp_path, IVMIX_DATA_DIR=str(tmp_path)).stdout
        assert "videos.read,videos.write,webhooks" in listed

    def test_what_is_wrong_is_one_sentence(self, tmp_path: Path) -> None:
        unknown = here("keys", "revoke", "key_x", cwd=tmp_path, IVMIX_DATA_DIR=str(tmp_path))
        scope = here("keys", "create", "--name", "a", "--scopes", "all", cwd=tmp_path, IVMIX_DATA_DIR=str(tmp_path))
        unreachable = here("keys", "list", cwd=tmp_path, IVMIX_REDIS_URL="redis://127.0.0.1:9")
        for run, word in ((unknown, "key_x"), (scope, "videos.read"), (unreachable, "unreachable")):
            assert (run.returncode, word in run.stderr, "Traceback" in run.stderr) == (1, True, False)
