"""What the README shows is run, word for word but for the address, against `ivmix up` as a reader would start it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import run, sdk_node, sdk_python
from tests.processes import ivmix_up
from tests.readme import ADDRESS, example
from worker.child.video import read_mp4


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ivmix_up(tmp_path_factory.mktemp("up")) as (_, url):
        yield url


def is_a_video(file: Path) -> bool:
    return read_mp4(file).shape == (8, 384, 384, 3)


def code(language: str, url: str) -> str:
    text = example("Call it", language)
    assert ADDRESS in text
    return text.replace(ADDRESS, url)


def test_curl(url: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    run("bash", "-euo", "pipefail", "-c", code("bash", url), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_python(url: str, tmp_path: Path) -> None:
    python = str(sdk_python("3.54.0"))
    run(python, "-W", "ignore::DeprecationWarning", "-c", code("python", url), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_javascript(url: str, tmp_path: Path) -> None:
    node, _ = sdk_node("7.57.0")
    script = tmp_path / "example.mjs"
    script.write_text(code("js", url))
    run(str(node), str(script), cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")


def test_submit(url: str, tmp_path: Path) -> None:
    prompt = "a red circle moving left on a teal background"
    run(sys.executable, "-m", "service.cli", "submit", prompt, "-o", "out.mp4", "--url", url, cwd=tmp_path)
    assert is_a_video(tmp_path / "out.mp4")
