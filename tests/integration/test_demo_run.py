"""`make demo` after the set-up, in a terminal and without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import browser
from tests.processes import clean_environment, light_engine
from tests.terminal import Terminal
from worker.child.mp4 import read_mp4

DEMO = [sys.executable, "-m", "demo.run"]
STEPS = ("service", "models", "IV-mixed", "video model alone", "image model alone", "comparison")


def demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = clean_environment() | environment
    return subprocess.run(DEMO, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_without_a_terminal_each_step_is_one_line(tmp_path: Path) -> None:
    ran = demo(tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[1 : 1 + len(STEPS)]] == list(STEPS)
    assert len(lines) <= 25  # the set-up may add five
    assert not any(line.startswith("{") for line in lines)
    assert "ready: demo on CPU" in ran.stdout
    files = [tmp_path / name for name in ("demo.mp4", "demo-compare.mp4")]
    assert all(len(read_mp4(file)) >= 8 for file in files)
    if browser.CHROMIUM:
        played = browser.play(tmp_path / "profile", *files)
        assert [(video["size"], video["ended"]) for video in played] == [([384, 384], True), ([1152, 464], True)]


@pytest.mark.slow
def test_in_a_terminal_each_step_gets_its_mark_and_no_log_line_is_between_them(tmp_path: Path) -> None:
    with Terminal(DEMO, cwd=tmp_path, env=clean_environment() | light_engine()) as terminal:
        assert terminal.wait() == 0, terminal.text
        lines = terminal.lines
    marked = [line for line in lines if line.startswith("✓ ")]
    assert len(marked) == len(STEPS)
    assert all(line[2:].startswith(name) for line, name in zip(marked, STEPS, strict=True))
    assert not any(line.startswith("{") or "[info" in line for line in lines)
    assert "models of demo loaded" in (tmp_path / ".demo" / "service.log").read_text()


def test_a_failure_names_the_step_and_the_log(tmp_path: Path) -> None:
    ran = demo(tmp_path, **light_engine(LOAD_ERROR="extra.bin is no safetensors file"))
    log = tmp_path / ".demo" / "service.log"
    assert ran.returncode == 1
    assert ran.stderr.startswith("ivmix: model demo cannot be loaded: ")
    assert ran.stderr.endswith(f"; see {log}\n")
    assert "extra.bin" in ran.stderr
    assert "extra.bin" in log.read_text()
    assert not (tmp_path / "demo.mp4").exists()
