"""The step list: plain lines for files and pipes, marks and one line per step in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from service.cli.console import Steps
from tests.terminal import CONTROL, FRAME


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.seek(0)
    lines = re.split(r"[\r\n]+", CONTROL.sub("", console.file.read()))
    return [line.rstrip() for line in lines if line.strip() and not FRAME.match(line)]


def console(*, is_terminal: bool, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    return Console(file=file, force_terminal=is_terminal, width=60, _environ={"TERM": "xterm"})


def run_steps(steps: Steps) -> None:
    with steps.step("models", "loading") as step:
        step.update("loading", 1, 2)
        step.done = "demo on CPU"
    steps.say("ready: " + "word " * 30)
    with pytest.raises(ValueError, match="no video"), steps.step("video", "sampling"):
        raise ValueError("no video")


def test_without_a_terminal_each_step_is_one_line_and_a_failed_one_is_left_to_its_message() -> None:
    out = console(is_terminal=False)
    run_steps(Steps(out))
    assert [re.sub(r"[\d.]+ s", "N s", line) for line in shown(out)] == [
        "models: demo on CPU (N s)",
        ("ready: " + "word " * 30).rstrip(),
    ]


def test_in_a_terminal_a_mark_shows_how_each_step_ended() -> None:
    out = console(is_terminal=True)
    run_steps(Steps(out))
    lines = [re.sub(r" +", " ", line) for line in shown(out)]
    assert any(line.startswith("✓ models demo on CPU") for line in lines)
    assert any(line.startswith("✗ video sampling") for line in lines)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_unicode_gets_marks_that_it_can_show(encoding: str) -> None:
    out = console(is_terminal=True, encoding=encoding)
    run_steps(Steps(out))
    assert any(line.startswith("+ models") for line in shown(out))
