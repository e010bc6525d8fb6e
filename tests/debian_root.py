"""A Debian root file system in a folder, and wheels for installing in it without an index. For slow tests, as root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers import ROOT
from tests.external_programs import run

SUITE = "bookworm"
FOR_OLDER_PYTHON = ("async-timeout",)  # redis needs it below 3.11.3, and Debian 12 has 3.11.2
BUILD_BACKEND = re.compile(r'^requires = \["(.*)"\]$', re.MULTILINE)


def require(*programs: str) -> None:
    """Skip the test unless it may use these programs, as root."""
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}: apt-get install mmdebstrap systemd-container buildah podman")
    if os.getuid() != 0:
        pytest.skip("needs root: it makes a root file system")


@contextmanager
def debian(folder: Path, *packages: str) -> Iterator[Path]:
    """A minimal Debian with these packages. It is deleted afterwards, because it is large."""
    options = ["--variant=minbase", f"--include={','.join(packages)}", "--skip=check/empty"]
    try:
        run("mmdebstrap", "--quiet", *options, SUITE, str(folder))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def wheels(folder: Path, constraints: str, *requirements: str) -> Iterator[Path]:
    """Everything that `pip install -c CONSTRAINTS REQUIREMENTS` in a checkout would download. torch is that for the CPU
    where pip finds it: TORCH_INDEX names an index, as for `make demo`.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--constraint", constraints]
    found = BUILD_BACKEND.search((ROOT / "pyproject.toml").read_text())
    assert found
    try:
        if "api" not in "".join(requirements):
            (torch,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
            index = os.environ.get("TORCH_INDEX")
            run(*pip, *(["--index-url", index] if index else []), "--no-deps", torch, cwd=ROOT)
        run(*pip, "--find-links", str(folder), *requirements, found[1], *FOR_OLDER_PYTHON, cwd=ROOT)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def checkout(folder: Path) -> Path:
    """The files that a checkout of the working tree has."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def megabytes(folder: Path) -> int:
    return int(run("du", "-sm", str(folder)).split()[0])
