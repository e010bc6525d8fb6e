"""Runs Schemathesis from a separate environment: installed here, its pytest plugin would load into every test run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.external_programs import made_once, run

VERSION = "4.32.5"
CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def fuzz(url: str, *, headers: dict[str, str], seconds: int, seed: int = 1) -> subprocess.CompletedProcess[str]:
    """Fuzz every operation in the server's OpenAPI document with all checks, for at most `seconds`."""
    python = made_once(f"schemathesis-{VERSION}", _install) / "bin" / "python"
    command = [str(python), "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    command += [f"--header={name}: {value}" for name, value in headers.items()]
    command += ["--checks=all", "--continue-on-failure", f"--max-time={seconds}", f"--seed={seed}"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 240, check=False)


def _install(folder: Path) -> None:
    run(sys.executable, "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", f"schemathesis=={VERSION}")
