"""What an operator can get wrong ends every command with one sentence, never with a traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ivmix_here
from tests.containers import ROOT
from tests.processes import clean_environment
from tests.valkey import Valkey

OTHER_USER = 65534
PROCESSES = (("api",), ("webhooks",), ("maintenance",), ("worker", "demo"), ("up", "--port", "0"))
EVERY_COMMAND = (*PROCESSES, ("keys", "list"), ("recover", "--dry-run"))
ENDS_WITHIN_S = 10.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


# Drops root's rights after the imports, because the interpreter may be in root's home. Root may do everything.
WITHOUT_RIGHTS = """
import encodings.idna, os, sys
import importlib.metadata, json, rich.console, rich.table
import service.catalog.registry, service.cli.keys, service.cli.recover, service.cli.follow
import service.cli.up, service.wiring
from service.cli.main import main
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
sys.argv[:2] = ["ivmix"]
main()
"""


def run(*arguments: str, user: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`user`: id of a user without rights."""
    program = ["-c", WITHOUT_RIGHTS, str(user)] if user else ["-m", "service.cli"]
    changed = clean_environment() | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={name: value for name, value in changed.items() if value},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_here(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In this process, for what is refused before anything is started."""
    return ivmix_here(*arguments, cwd=Path("/"), environment=clean_environment() | environment)


def assert_sentence(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    shown = ran.stderr
    assert ran.returncode in (1, 2), (ran.args, shown)
    assert "Traceback" not in shown
    sentence = next((line for line in shown.splitlines() if line.startswith("ivmix: ")), shown)
    for word in words:
        assert word in sentence, (ran.args, shown)


def run_all(commands: tuple[tuple[str, ...], ...], **environment: str) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda command: run(*command, **environment), commands))


@pytest.mark.slow
def test_a_wrong_password_ends_every_command_in_time(folder: Path) -> None:
    with Valkey(folder / "redis") as server:
        url = server.url.replace("secret", "wrong")
        began = time.monotonic()
        for ran in run_all(EVERY_COMMAND, IVMIX_REDIS_URL=url, IVMIX_DATA_DIR=str(folder / "data")):
            assert_sentence(ran, "IVMIX_REDIS_URL", "rejects the user or password")
            assert "wrong" not in ran.stderr
        assert (time.monotonic() - began) / len(EVERY_COMMAND) < ENDS_WITHIN_S


def test_a_misspelt_variable_ends_every_command(folder: Path) -> None:
    commands = (("api",), ("worker", "demo"), ("up",), ("keys", "list"), ("submit", "a red circle"), ("models", "list"))
    wrong = {"IVMIX_REDIS_UR": "redis://localhost", "IVMIX_DATA_DIR": str(folder)}
    for ran in (run(*commands[0], **wrong), *(run_here(*command, **wrong) for command in commands)):
        assert_sentence(ran, "IVMIX_REDIS_UR", "did you mean IVMIX_REDIS_URL?")


def file_as_folder(data: Path) -> None:
    data.write_text("")


def file_above(data: Path) -> None:
    data.parent.joinpath("file").write_text("")
    data.symlink_to(data.parent / "file" / "below")


def dangling_link(data: Path) -> None:
    data.symlink_to(data.parent / "missing")


def loop_of_links(data: Path) -> None:
    data.symlink_to(data)


def read_only(data: Path) -> None:
    data.mkdir(mode=0o555)


def unlistable(data: Path) -> None:
    data.mkdir()
    os.chown(data, OTHER_USER, OTHER_USER)
    data.chmod(0o300)


def file_as_queue(data: Path) -> None:
    data.mkdir()
    data.chmod(0o777)
    (data / "valkey").write_text("")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "prepare", [file_as_folder, file_above, dangling_link, loop_of_links, read_only, unlistable, file_as_queue]
)
def test_a_data_folder_that_cannot_be_used(prepare: Any, folder: Path) -> None:
    data = folder / "data"
    prepare(data)
    up, keys = ("up", "--port", "0", "--workers", "0"), ("keys", "list")
    for command in (up, keys) if prepare in (file_as_folder, read_only) else (up,):
        assert_sentence(run(*command, user=OTHER_USER, IVMIX_DATA_DIR=str(data)), str(data), "IVMIX_DATA_DIR")


@pytest.mark.slow
def test_a_folder_of_another_process_type(folder: Path) -> None:
    """Storage and scratch folders are used by the API and by workers."""
    (folder / "data").write_text("")
    with Valkey(folder / "redis") as server:
        commands = (("api",), ("maintenance",), ("worker", "demo"), ("recover",))
        for ran in run_all(commands, IVMIX_REDIS_URL=server.url, IVMIX_DATA_DIR=str(folder / "data")):
            assert_sentence(ran, "IVMIX_DATA_DIR", "a file is in the way")
        scratch = {"IVMIX_DATA_DIR": str(folder / "other"), "IVMIX_SCRATCH_DIR": str(folder / "data")}
        assert_sentence(run("worker", "demo", IVMIX_REDIS_URL=server.url, **scratch), "IVMIX_SCRATCH_DIR")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user id")
def test_no_home_and_no_entry_in_passwd() -> None:
    """A container whose user id is arbitrary."""
    for command in (("up",), ("keys", "list"), ("models", "list")):
        ran = run(*command, user=54321, HOME="", XDG_DATA_HOME="")
        assert_sentence(ran, "no home folder", "IVMIX_DATA_DIR")


@pytest.mark.slow
def test_ports_in_use(folder: Path) -> None:
    with Valkey(folder / "redis") as server, socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        common = {"IVMIX_REDIS_URL": server.url, "IVMIX_DATA_DIR": str(folder / "data")}
        for command, variable in (
            (("up",), "IVMIX_PORT"),
            (("api",), "IVMIX_PORT"),
            (("api",), "IVMIX_METRICS_PORT"),
            (("webhooks",), "IVMIX_WEBHOOK_METRICS_PORT"),
            (("worker", "demo"), "IVMIX_WORKER_METRICS_PORT"),
        ):
            given = {"IVMIX_PORT": "0"} | common | {variable: port}
            assert_sentence(run(*command, **given), variable, port, "in use")
        assert_sentence(run("api", **common, IVMIX_PORT="0", IVMIX_HOST="nowhere.invalid"), "IVMIX_HOST")
        assert_sentence(run("api", **common, IVMIX_PORT="0", IVMIX_HOST="203.0.113.9"), "does not have this address")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("IVMIX_PORT", "http", "IVMIX_PORT"),
        ("IVMIX_LEASE_S", "long", "IVMIX_LEASE_S"),
        ("IVMIX_DATA_DIR", "~nosuchuser/data", "IVMIX_DATA_DIR"),
        ("IVMIX_MODELS_FILE", "/nowhere/models.toml", "/nowhere/models.toml"),
        ("IVMIX_MODELS_FILE", "/", "Is a directory"),
        ("IVMIX_REDIS_SERVER", "/nowhere/valkey-server", "IVMIX_REDIS_SERVER"),
        ("IVMIX_REDIS_SERVER", "/", "IVMIX_REDIS_SERVER"),
        ("IVMIX_REDIS_SERVER", "/bin/false", "did not start"),
        ("IVMIX_REDIS_URL", "redis//localhost", "IVMIX_REDIS_URL"),
    ],
)
def test_values_that_cannot_be_used(variable: str, value: str, words: str, folder: Path) -> None:
    given = {"IVMIX_DATA_DIR": str(folder / "data"), "IVMIX_PORT": "0", variable: value}
    assert_sentence(run_here("up", "--workers", "0", **given), words)


def test_an_unreadable_models_file(folder: Path) -> None:
    file = folder / "models.toml"
    file.write_text("")
    file.chmod(0)
    given = {"IVMIX_MODELS_FILE": str(file), "IVMIX_DATA_DIR": str(folder)}
    assert_sentence(run("models", "list", user=OTHER_USER, **given), str(file), "Permission denied")


def test_a_full_disk_at_the_start(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a file system here")
    try:
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 4096)
            except OSError:
                pass
        ran = run("up", "--port", "0", "--workers", "0", IVMIX_DATA_DIR=str(disk / "data"))
        assert_sentence(ran, "IVMIX_DATA_DIR", "No space left")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
