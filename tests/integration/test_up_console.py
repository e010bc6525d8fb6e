"""What `ivmix up` shows: steps and a ready line in a terminal, its log in a file; log lines on stderr elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.cli.up import LARGE_LOG_BYTES
from tests.child_processes import ends_with_tests
from tests.ports import free_port
from tests.processes import clean_environment, light_engine, wait_for
from tests.terminal import Terminal

UP = [sys.executable, "-m", "service.cli", "up", "--port", "0"]


def up_in_terminal(data: Path, *options: str, **environment: str) -> Terminal:
    return Terminal([*UP, "--data", str(data), *options], cwd=data.parent, env=clean_environment() | environment)


def is_log_line(line: str) -> bool:
    return line.startswith("{") or "[info" in line


def test_a_terminal_shows_steps_and_who_is_ready_where_and_the_log_is_in_a_file(tmp_path: Path) -> None:
    with up_in_terminal(tmp_path / "data", **light_engine()) as terminal:
        terminal.read_until("ready for work")
        terminal.read_until("log: ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
        lines = terminal.lines
    assert [line for line in lines if is_log_line(line)] == []
    assert lines[0].startswith("✓ service")
    url = lines[1].split()[4]
    assert lines[1].startswith(f"ivmix is up on {url}")
    assert next(line for line in lines if "models" in line).startswith("✓ models            demo")
    (ready,) = [line for line in lines if line.startswith("ready for work")]
    assert ready == f"ready for work: demo on no device. Try it: {url}"
    log = tmp_path / "data" / "logs" / "up.log"
    assert f"log: {log}" in lines
    assert "models of demo loaded" in log.read_text()
    assert lines[-1] == "stopping"


@pytest.mark.slow
def test_logs_of_several_runs_are_in_one_file_and_logs_shows_them_in_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "data" / "logs" / "up.log"
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    for options, expected in ((["--logs"], "before\n"), ([], None)):
        with up_in_terminal(tmp_path / "data", "--workers", "0", *options) as terminal:
            terminal.read_until("no worker runs here")
            if expected:
                terminal.read_until("leading")
            terminal.process.send_signal(signal.SIGTERM)
            assert terminal.wait() == 0
            assert any(is_log_line(line) for line in terminal.lines) is bool(expected)
        assert log.read_text().startswith("before\n")
        assert (log.read_text() == "before\n") is bool(expected)
    assert log.stat().st_mode & 0o077 == 0  # prompts are never logged, but ids are


def test_a_large_log_is_set_aside_when_the_next_run_starts(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    for size, is_set_aside in ((LARGE_LOG_BYTES, False), (LARGE_LOG_BYTES + 1, True)):
        log.write_bytes(b"x" * size)
        program = "import sys, pathlib; from service.cli.up import Console, Settings, log_to_file; "
        program += "log_to_file(Settings(), pathlib.Path(sys.argv[1]), Console())"
        subprocess.run([sys.executable, "-c", program, str(log)], check=True)
        assert log.with_suffix(".log.1").exists() is is_set_aside


@pytest.mark.slow
def test_a_second_up_in_a_terminal_ends_and_leaves_the_log_to_the_first(tmp_path: Path) -> None:
    data = tmp_path / "data"
    log = data / "logs" / "up.log"
    with up_in_terminal(data, "--workers", "0") as first:
        first.read_until("no worker runs here")
        file = log.stat().st_ino
        with up_in_terminal(data, "--workers", "0") as second:
            assert second.wait() == 1
            assert "in use" in second.text
        first.process.send_signal(signal.SIGINT)
        assert first.wait() == 0
    assert log.stat().st_ino == file
    assert not log.with_suffix(".log.1").exists()


@pytest.mark.parametrize("name", ["logs", "logs/up.log"])
def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    wrong = data / name
    if name == "logs":
        data.mkdir()
        wrong.touch()
    else:
        wrong.mkdir(parents=True)
    with up_in_terminal(data, "--workers", "0") as terminal:
        assert terminal.wait() == 1
    (line,) = terminal.lines
    assert line.startswith("ivmix: ")
    assert str(wrong) in line


def test_an_unreachable_storage_is_the_last_line_of_the_start(tmp_path: Path) -> None:
    """Not "ready for work": it says what happens to videos meanwhile, and what to do."""
    storage = {"STORAGE": "s3", "S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "S3_BUCKET": "videos"}
    keys = {"S3_ACCESS_KEY_ID": "id", "S3_SECRET_ACCESS_KEY": "secret", "STORAGE_RETRY_S": "77"}
    settings = {f"IVMIX_{name}": value for name, value in (storage | keys).items()}
    with up_in_terminal(tmp_path / "data", **light_engine(), **settings) as terminal:
        terminal.read_until("`ivmix doctor` checks it")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
        *before, last, stopping = terminal.lines
    assert stopping == "stopping"
    assert not any("ready for work" in line for line in before)
    assert last.startswith("not ready: the storage is unreachable: bucket videos: ")
    for words in ("are accepted and made", f"{tmp_path}/data/scratch for 77 s", "IVMIX_S3_ENDPOINT_URL"):
        assert words in last


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_shown_with_the_reason(tmp_path: Path) -> None:
    reason = light_engine(LOAD_ERROR="extra.bin is no safetensors file")
    with up_in_terminal(tmp_path / "data", **reason) as terminal:
        terminal.read_until("model demo cannot be loaded by worker demo 0")
        terminal.read_until("none could be loaded")
        terminal.read_until("not ready: model demo cannot be loaded")
        assert "extra.bin" in terminal.text
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
        assert not any("ready for work" in line or "exited" in line for line in terminal.lines)
    assert "extra.bin" in (tmp_path / "data" / "logs" / "up.log").read_text()


def test_without_a_terminal_lines_are_plain_and_logs_are_json_on_stderr(tmp_path: Path) -> None:
    command = [*UP, "--data", str(tmp_path / "data")]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=clean_environment() | light_engine(),
        preexec_fn=ends_with_tests(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        written: dict[str, list[str]] = {"stdout": [], "stderr": []}
        readers = [
            threading.Thread(target=lambda stream=stream, to=to: to.extend(stream), daemon=True)
            for stream, to in ((process.stdout, written["stdout"]), (process.stderr, written["stderr"]))
        ]
        for reader in readers:
            reader.start()
        wait_for(lambda: any("ready for work" in line for line in written["stdout"]) or None, timeout_s=90)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for reader in readers:
            reader.join(10)
    assert len(written["stdout"]) == 6
    assert "\x1b" not in "".join(written["stdout"])
    assert "models of demo loaded" in " ".join(json.loads(line)["event"] for line in written["stderr"])
    assert not (tmp_path / "data" / "logs").exists()
