"""`make demo` and `make test` call this first: the virtual environment in .venv with what they need.

    python3 tools/install.py [--dev]

It runs before anything is installed, so it uses the standard library only. uv installs if it is on the PATH, else pip.
torch comes from TORCH_INDEX, by default its own index of CPU wheels: on the default index it is a build with CUDA,
which is ten times as large. If TORCH_INDEX does not answer, or is empty, the same version comes from the default one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT_S = 4.0
NETWORK_TIMEOUT_S = "30"  # of uv and pip, for one answer of an index
SPINNER = "|/-\\"
PYTHONS = ((3, 11), (3, 14))  # first supported, first unsupported
LOG_TAIL = 15  # lines shown when something fails


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    is_dev = parser.parse_args().dev
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        stop(f"Python {sys.version.split()[0]} is not supported; run make with PYTHON=python3.11, 3.12 or 3.13")
    size = "450 MB to download, 2.1 GB" if is_dev else "310 MB to download, 1.2 GB"
    say(f"environment: {size} in .venv; one to two minutes on a fast line, once")
    began = time.monotonic()
    try:
        create_venv()
        LOG.write_text("")
        install_torch(pinned("torch"), os.environ.get("TORCH_INDEX", CPU_INDEX))
        install_packages(is_dev)
        remove_test_programs_of_torch()
        if is_dev:  # several test processes would compile the same modules at the same time
            run("bytecode", [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib")])
    except KeyboardInterrupt:
        stop("interrupted; the next run continues")
    for stamp in (".installed", *([".installed-dev"] if is_dev else [])):
        (VENV / stamp).touch()
    say(f"environment: ready after {time.monotonic() - began:.0f} s")


def create_venv() -> None:
    if PYTHON.exists():
        return
    uv = shutil.which("uv")
    command = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    code, output = output_of([*command, "--clear", str(VENV)])
    if code:
        stop(f"the virtual environment could not be created:\n{output.strip()}")


def install_torch(version: str, index: str) -> None:
    """From `index`; if that is impossible, say so and leave it to `install_packages`."""
    if not index or is_installed("torch", version):
        return
    problem = index_problem(index, "torch", version)
    if problem is None and install("torch", f"torch=={version}", index=index) == 0:
        return
    say(
        f"environment: no torch from {index} ({problem or f'see {LOG}'}); taking it from the default index, where its "
        "build may contain CUDA: up to 3 GB more. TORCH_INDEX=URL names another index."
    )


def install_packages(is_dev: bool) -> None:
    group = ["--group", "dev"] if is_dev else []
    code = install("packages", "--constraint", "constraints.txt", *group, "--editable", ".[all]")
    if code:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        stop(f"the packages could not be installed (exit code {code}). The end of {LOG}:\n{tail}")


def remove_test_programs_of_torch() -> None:
    """Of some builds, the wheel holds torch's C++ tests: 120 MB that nothing runs."""
    for torch in VENV.glob("lib/python*/site-packages/torch"):
        shutil.rmtree(torch / "test", ignore_errors=True)
        for program in [*torch.glob("bin/test_*"), *torch.glob("bin/*Test")]:
            program.unlink()


def install(what: str, *arguments: str, index: str | None = None) -> int:
    """Install with uv, else with pip. Returns the exit code; the output is in LOG."""
    if uv := shutil.which("uv"):
        source = ["--default-index", index, "--no-deps"] if index else []
        command = [uv, "pip", "install", "--python", str(PYTHON), *source, *arguments]
        code = run(what, command, UV_HTTP_TIMEOUT=NETWORK_TIMEOUT_S)
        if code == 0 or index:
            return code
        # It does not read the configuration of pip, which may name a mirror.
        say(f"environment: uv could not install the {what}; trying pip")
    prepare_pip(has_groups="--group" in arguments)
    source = ["--index-url", index, "--no-deps", "--retries", "1"] if index else []
    options = ["--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", *source]
    return run(what, [str(PYTHON), "-m", "pip", "install", *options, *arguments], PIP_DEFAULT_TIMEOUT=NETWORK_TIMEOUT_S)


def prepare_pip(*, has_groups: bool) -> None:
    """An environment that uv created has no pip, and before 25.1 pip does not know dependency groups."""
    pip = [str(PYTHON), "-m", "pip"]
    code, output = output_of([*pip, "--version"])
    if code:
        run("pip", [str(PYTHON), "-m", "ensurepip", "--default-pip"])
    version = re.match(r"pip (\d+)\.(\d+)", output)
    if has_groups and (version is None or tuple(map(int, version.groups())) < (25, 1)):
        run("pip", [*pip, "install", "--disable-pip-version-check", "--upgrade", "pip>=25.1"])


def output_of(command: list[str]) -> tuple[int, str]:
    """Exit code, and both outputs in one."""
    ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ran.returncode, ran.stdout


def index_problem(index: str, package: str, version: str) -> str | None:
    """Why a version cannot be taken from an index; None if the index lists it. Takes INDEX_TIMEOUT_S at most."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index.rstrip('/')}/{package}/", timeout=INDEX_TIMEOUT_S) as response:
                page = response.read().decode(errors="replace")
        except Exception as e:  # whatever is wrong with it, there is another index
            reason = getattr(e, "reason", None)
            cause = reason if isinstance(reason, OSError) else e
            found.append(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
        else:
            is_listed = re.search(rf"{package}-{re.escape(version)}(-|\+|%2B)", page)
            found.append(None if is_listed else f"it does not have {package} {version}")

    # In a thread: a name server that does not answer, or a page that trickles in, ignores a socket's timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(INDEX_TIMEOUT_S)
    return found[0] if found else f"no answer within {INDEX_TIMEOUT_S:.0f} s"


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"constraints.txt has no {package}"
    return found[1]


def is_installed(package: str, version: str) -> bool:
    return any(
        re.fullmatch(rf"{package}-{re.escape(version)}(\+\w+)?\.dist-info", folder.name)
        for folder in VENV.glob(f"lib/python*/site-packages/{package}-*.dist-info")
    )


def run(what: str, command: list[str], **environment: str) -> int:
    """Run a command with its output in LOG; in a terminal show its last line next to a spinner."""
    began = time.monotonic()
    with LOG.open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **environment})
        try:
            for mark in itertools.cycle(SPINNER):
                show(f"{mark} {what:<12} {time.monotonic() - began:3.0f} s  {last_line(LOG)}")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    break
        finally:
            show("")
            process.terminate()
            process.wait()
    return process.returncode


def last_line(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 1000))
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def show(line: str) -> None:
    """Replace the current line of a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line[:width]}", end="", flush=True)


def say(line: str) -> None:
    print(line, flush=True)


def stop(message: str) -> NoReturn:
    sys.exit(f"environment: {message}")


if __name__ == "__main__":
    main()
