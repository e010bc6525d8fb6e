"""Runs Schemathesis from a separate environment: installed here, its pytest plugin would load into every test run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.external_programs import python_with

VERSION = "4.32.5"
CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def fuzz(url: str, *, headers: dict[str, str], seconds: int, seed: int = 1) -> subprocess.CompletedProcess[str]:
    """Fuzz every operation in the server's OpenAPI document with all checks, for at most `seconds`."""
    python = python_with(f"schemathesis=={VERSION}")
    command = [str(python), "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    command += [f"--header={name}: {value}" for name, value in headers.items()]
    command += ["--checks=all", "--continue-on-failure", f"--max-time={seconds}", f"--seed={seed}"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 240, check=False)
