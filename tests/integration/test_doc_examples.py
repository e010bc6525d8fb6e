"""The examples of README.md and docs/api.md run as printed, except for the address, against a real `ivmix up`.

Its worker only draws squares; test_end_to_end.py has the demo models, and compares what is drawn.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.doc_examples import ADDRESS, DOCS, README, example
from tests.external_programs import run, sdk_node, sdk_python
from worker.child.mp4 import read_mp4


def is_a_video(file: Path) -> bool:
    return read_mp4(file).shape == (8, 384, 384, 3)


def code(document: Path, language: str, containing: str, url: str) -> str:
    text = example(document, language, containing)
    assert ADDRESS in text
    return text.replace(ADDRESS, url)


def test_curl(drawing_server: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    run("bash", "-euo", "pipefail", "-c", code(README, "bash", "curl", drawing_server), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_python(drawing_server: str, tmp_path: Path) -> None:
    python = str(sdk_python("3.54.0"))
    # A deprecation warning that the example does not filter is an error here.
    strict = ("-W", "error::DeprecationWarning:__main__")
    run(python, *strict, "-c", code(README, "python", "create_and_poll", drawing_server), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_javascript(drawing_server: str, tmp_path: Path) -> None:
    node, _ = sdk_node("7.57.0")
    script = tmp_path / "example.mjs"
    script.write_text(code(DOCS / "api.md", "js", "writeFile", drawing_server))
    run(str(node), str(script), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_submit(drawing_server: str, tmp_path: Path) -> None:
    prompt = "a red circle moving left on a teal background"
    run(sys.executable, "-m", "service.cli", "submit", prompt, "-o", "out.mp4", "--url", drawing_server, cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")
