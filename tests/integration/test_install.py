"""tools/install.py on a small project and local package indexes: where torch comes from, and what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.containers import ROOT
from tests.package_index import package_index, silent_server
from tests.ports import free_port
from tests.terminal import Terminal

UV = Path(sys.executable).with_name("uv")  # of the dev group
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1"
dependencies = ["torch>=2", "numpy"]
optional-dependencies = {all = []}

[dependency-groups]
dev = ["pytest"]
"""
# Makes an editable wheel of nothing but metadata.
BACKEND = """
import pathlib, shutil
from wheel_of_tests import wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, data = wheel("tiny", "1", ("torch>=2", "numpy"))
    pathlib.Path(folder, name).write_bytes(data)
    return name
"""
PINNED = "2.13.0"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the installer, and an environment in .venv with the pip of this one."""
    root = tmp_path / "project"
    (root / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "install.py", root / "tools")
    shutil.copy(ROOT / "tests" / "package_index.py", root / "wheel_of_tests.py")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "constraints.txt").write_text(f"numpy==2.0.0\npytest==9.0.0\ntorch=={PINNED}\n")
    return root


@pytest.fixture(scope="module")
def default_index() -> Iterator[str]:
    with package_index({"torch": PINNED, "numpy": "2.0.0", "pytest": "9.0.0"}) as url:
        yield url


def environment(default: str, torch_index: str | None, *, path: str = "/usr/bin:/bin") -> dict[str, str]:
    """Without the configuration of pip and uv that this machine has."""
    given = {
        "PATH": path,
        "HOME": os.environ["HOME"],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": default,
        "PIP_CACHE_DIR": "",
        "UV_NO_CONFIG": "1",
        "UV_NO_CACHE": "1",
        "UV_DEFAULT_INDEX": default,
    }
    return given if torch_index is None else {**given, "TORCH_INDEX": torch_index}


def install(project: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "tools" / "install.py"), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def installed(project: Path) -> dict[str, str]:
    """Version by name of what is in .venv, without pip."""
    folders = project.glob(".venv/lib/python*/site-packages/*.dist-info")
    found = dict(folder.name.removesuffix(".dist-info").split("-", 1) for folder in folders)
    return {name: version for name, version in found.items() if name not in ("pip", "setuptools")}


PLAIN_PATH = "/usr/bin:/bin"
UV_PATH = f"{UV.parent}:{PLAIN_PATH}"


@pytest.mark.parametrize("path", [pytest.param(PLAIN_PATH, marks=pytest.mark.slow), UV_PATH], ids=["pip", "uv"])
def test_torch_comes_from_its_index_and_the_rest_from_the_default(project: Path, default_index: str, path: str) -> None:
    asked: list[str] = []
    with package_index({"torch": f"{PINNED}+cpu", "numpy": "1.0"}, asked=asked) as torch_index:
        env = environment(default_index, torch_index, path=path)
        ran = install(project, env)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert installed(project) == {"torch": f"{PINNED}+cpu", "numpy": "2.0.0", "tiny": "1"}
        assert {page.split("/")[2] for page in asked} == {"torch"}
        (torch,) = project.glob(".venv/lib/python*/site-packages/torch")
        files = {str(file.relative_to(torch)) for file in torch.rglob("*") if file.is_file()}
        assert files == {"__init__.py", "bin/shm_manager"}, "without its test programs"
        first, last = ran.stdout.splitlines()
        assert "310 MB to download" in first
        assert "ready after" in last
        asked.clear()
        assert install(project, env).returncode == 0
    assert asked == []  # it is there already


def test_only_the_tests_get_what_the_tests_need(project: Path, default_index: str) -> None:
    """With uv: pip would first have to renew itself, from an index that has pip."""
    stamps = (project / ".venv" / ".installed", project / ".venv" / ".installed-dev")
    assert install(project, environment(default_index, "", path=UV_PATH)).returncode == 0
    assert "pytest" not in installed(project)
    assert [stamp.exists() for stamp in stamps] == [True, False]
    ran = install(project, environment(default_index, "", path=UV_PATH), "--dev")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert installed(project)["pytest"] == "9.0.0"
    assert [stamp.exists() for stamp in stamps] == [True, True]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("refuses", "Connection refused"),
        ("is silent", "no answer within 4 s"),
        ("stops in the middle", "no answer within 4 s"),
        ("has another version", f"it does not have torch {PINNED}"),
        ("does not know torch", "404"),
        ("is no URL", "unknown url type"),
        ("lists a wheel that it does not have", "install.log"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_line_and_seconds(
    project: Path, default_index: str, kind: str, problem: str
) -> None:
    began = time.monotonic()
    with index_that(kind) as torch_index:
        ran = install(project, environment(default_index, torch_index, path=UV_PATH))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert installed(project)["torch"] == PINNED
    _, line, _ = ran.stdout.splitlines()
    assert torch_index in line
    assert problem in line
    assert "TORCH_INDEX=URL" in line
    assert time.monotonic() - began < 60


@contextmanager
def index_that(kind: str) -> Iterator[str]:
    with ExitStack() as stack:
        match kind:
            case "refuses":
                yield f"http://127.0.0.1:{free_port()}/simple"
            case "is silent":
                yield stack.enter_context(silent_server())
            case "stops in the middle":
                start = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<a href='torch-"
                yield stack.enter_context(silent_server(start))
            case "has another version":
                yield stack.enter_context(package_index({"torch": f"{PINNED}1+cpu"}))
            case "does not know torch":
                yield stack.enter_context(package_index({"numpy": "1.0"}))
            case "lists a wheel that it does not have":
                yield stack.enter_context(package_index({"torch": PINNED}, is_broken=True))
            case _:
                yield "no url"


@pytest.mark.slow
def test_without_any_index_the_end_of_the_log_is_shown(project: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/simple"
    ran = install(project, environment(nowhere, "") | {"PIP_RETRIES": "0"})
    assert ran.returncode == 1
    assert "environment: the packages could not be installed" in ran.stderr
    assert str(project / ".venv" / "install.log") in ran.stderr
    assert "ERROR: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (project / ".venv" / ".installed").exists()


@pytest.mark.slow
def test_pip_takes_over_where_uv_finds_nothing(project: Path, default_index: str) -> None:
    """pip may be configured for a mirror that uv does not know."""
    nowhere = f"http://127.0.0.1:{free_port()}/simple"
    env = environment(default_index, "", path=UV_PATH)
    ran = install(project, env | {"UV_DEFAULT_INDEX": nowhere, "UV_HTTP_RETRIES": "0"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "uv could not install the packages; trying pip" in ran.stdout
    assert installed(project)["numpy"] == "2.0.0"


def test_in_a_terminal_what_is_being_installed_is_shown(project: Path, default_index: str) -> None:
    command = [sys.executable, str(project / "tools" / "install.py")]
    with Terminal(command, cwd=project, env=environment(default_index, "", path=UV_PATH)) as terminal:
        assert terminal.wait() == 0
    assert re.search(r"packages +\d+ s  \S", terminal.text)
    assert len([line for line in terminal.lines if line.startswith("environment: ")]) == 2
