"""Checks of the machine and the installation, which need no settings."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import service
from service.doctor.finding import Findings, ok, problem, warning

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"  # of a checkout; a wheel has none
ENCODER_TIMEOUT_S = 30.0
FIRST_RELEASE = 1_790_000_000.0  # unix seconds; a clock before it is wrong
SHOWN_PACKAGES = 6

# In a separate process: loading libraries of codecs takes long, and a broken one ends the process.
ENCODE = """
import av, io
container = av.open(io.BytesIO(), "w", format="mp4")
stream = container.add_stream("libx264", rate=8)
stream.width = stream.height = 64
stream.pix_fmt = "yuv420p"
container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
container.mux(stream.encode(None))
container.close()
"""


def check_machine(constraints: Path = CONSTRAINTS) -> Findings:
    yield ok("python", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from check_packages(constraints)
    yield from check_encoder()
    if time.time() < FIRST_RELEASE:
        yield problem("clock", f"this machine's clock says {time.strftime('%Y-%m-%d')}", "set it, and start NTP")


def check_packages(constraints: Path) -> Findings:
    """Installed versions against what the package requires, and against the tested ones where they are known."""
    installed, wrong = dict[str, str](), list[str]()
    for requirement in _requirements():
        try:
            installed[canonicalize_name(requirement.name)] = found = version(requirement.name)
        except PackageNotFoundError:
            if not _is_optional(requirement):
                wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        yield problem("packages", "; ".join(wrong), "install ivmix again, as docs/operations.md shows")
        return
    differing = [f"{name} {installed[name]} instead of {tested}" for name, tested in _tested(constraints, installed)]
    if differing:
        shown = ", ".join(differing[:SHOWN_PACKAGES]) + (", ..." if len(differing) > SHOWN_PACKAGES else "")
        yield warning("packages", f"not the tested versions: {shown}", "install with `-c constraints.txt`")
    else:
        yield ok("packages", f"ivmix {service.__version__} and {len(installed)} libraries have the required versions")


def check_encoder() -> Findings:
    """Encode one picture, as a worker does. Without PyAV this machine can be neither API nor worker."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", ENCODE], capture_output=True, text=True, timeout=ENCODER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield problem("encoder", f"encoding one picture took longer than {ENCODER_TIMEOUT_S:.0f} s")
        return
    last = (ran.stderr.strip().splitlines() or [""])[-1]
    if ran.returncode == 0:
        yield ok("encoder", "PyAV encodes H.264")
    elif "No module named 'av'" in last:
        yield warning("encoder", "PyAV is missing", "API and workers need it: install ivmix[api] or ivmix[worker]")
    else:
        reason = last or f"it ended with code {ran.returncode}"
        yield problem("encoder", f"PyAV cannot encode H.264: {reason}", "install the `av` wheel, which has libx264")


def _requirements() -> Iterator[Requirement]:
    """All requirements that apply to this Python, those of extras included."""
    for text in distribution("ivmix").requires or ():
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        environment = {"extra": extra[1] if extra else ""}
        applies = requirement.marker is None or requirement.marker.evaluate(environment)
        if applies and canonicalize_name(requirement.name) != "ivmix":
            yield requirement


def _is_optional(requirement: Requirement) -> bool:
    return "extra" in str(requirement.marker or "")


def _tested(constraints: Path, installed: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names and tested versions of the libraries that have another one."""
    try:
        lines = constraints.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, is_pinned, tested = line.partition("==")
        name = canonicalize_name(name.strip())
        # torch's wheels for a kind of device add it to the version: 2.13.0+cu128
        if is_pinned and name in installed and installed[name].partition("+")[0] != tested.strip().partition("+")[0]:
            yield name, tested.strip()
