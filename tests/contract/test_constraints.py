"""constraints.txt and constraints-gpu.txt pin everything that is installed for the CPU and for CUDA."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers import IMAGES, ROOT

CPU, GPU = ROOT / "constraints.txt", ROOT / "constraints-gpu.txt"
UV = Path(sys.executable).with_name("uv")


def pins(file: Path) -> dict[str, str]:
    """Version by normalised name."""
    found = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_both_files_pin_and_the_second_adds_to_the_first() -> None:
    lines = [line for line in GPU.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "-c constraints.txt"
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines[1:])
    assert not pins(GPU).keys() & pins(CPU).keys()
    assert len(lines) - 1 == len(pins(GPU))


def test_the_worker_image_installs_the_pins_for_cuda() -> None:
    text = IMAGES["ivmix-worker"].read_text()
    assert "-c constraints-gpu.txt '.[worker,otel]'" in text
    assert "-c constraints.txt '.[api,otel]'" in IMAGES["ivmix-service"].read_text()


def run(*command: str) -> str:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    if re.search("error sending request|dns error|NewConnectionError|Temporary failure", ran.stderr):
        pytest.skip("no package index can be reached, so what it offers is not compared with the pins")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_everything_for_cuda_is_pinned(python: str) -> None:
    """Resolved without installing: the wheels are gigabytes."""
    platform = ("--python-version", python, "--python-platform", "x86_64-manylinux_2_28")
    options = ("--quiet", "--no-annotate", "--no-header", *platform)
    printed = run(str(UV), "pip", "compile", "pyproject.toml", "--extra", "all", "-c", str(GPU), *options)
    resolved = {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", printed, re.MULTILINE)}
    assert "torch" in resolved
    assert any(name.startswith("nvidia-") for name in resolved)
    assert resolved.items() <= (pins(CPU) | pins(GPU)).items()


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["all", "api", "worker"])
def test_everything_for_the_cpu_is_pinned(extra: str) -> None:
    """As `pip install` of docs/operations.md resolves it here; with CUDA, both files pin it."""
    options = ("--dry-run", "--ignore-installed", "--quiet", "--report", "-", "-c", str(CPU))
    report = json.loads(run(sys.executable, "-m", "pip", "install", *options, f".[{extra}]"))
    resolved = {normal(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    resolved = {name: version.partition("+")[0] for name, version in resolved.items() if name != "ivmix"}
    assert len(resolved) > 20
    assert resolved.items() <= (pins(CPU) | pins(GPU)).items()
