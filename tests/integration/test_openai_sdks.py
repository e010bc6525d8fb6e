"""Unmodified clients against `ivmix up` with API keys and a worker that only draws squares.

test_end_to_end.py has the demo models.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.external_programs import run, sdk_node, sdk_python
from tests.processes import clean_environment, ivmix_up, light_engine

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with ivmix_up(data, **light_engine(IVMIX_AUTH="keys")) as (_, url):
        yield url


@pytest.fixture
def new_key(data: Path) -> Callable[[], str]:
    def make() -> str:
        command = [sys.executable, "-m", "service.cli", "keys", "create", "--name", "test"]
        environment = clean_environment() | {"IVMIX_DATA_DIR": str(data)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    return make


@pytest.mark.sample(1)
@pytest.mark.parametrize("version", ["2.8.1", "3.54.0"])
def test_the_python_sdk_of_openai(url: str, new_key: Callable[[], str], tmp_path: Path, version: str) -> None:
    script = str(SCRIPTS / "openai_videos.py")
    assert run(str(sdk_python(version)), script, f"{url}/v1", new_key(), str(tmp_path)).strip() == "well"


def test_the_node_package_of_openai(url: str, new_key: Callable[[], str]) -> None:
    node, folder = sdk_node("7.57.0")
    script = folder / "openai_videos.mjs"  # next to its node_modules
    script.write_text((SCRIPTS / "openai_videos.mjs").read_text())
    assert run(str(node), str(script), f"{url}/v1", new_key()).strip() == "well"
