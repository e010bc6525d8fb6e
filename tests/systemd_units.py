"""Reads the units of deploy/systemd."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.container_checks import Container
from tests.containers import DEPLOY, env_file

SYSTEMD = DEPLOY / "systemd"
PROGRAMS = "/opt/ivmix/current/bin"
UNITS = tuple(sorted(path.name for path in (*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.target"))))
OURS = tuple(name for name in UNITS if name.endswith(".service") and "valkey" not in name)


def options(unit: str, section: str = "Service") -> dict[str, list[str]]:
    """Values by name; a name may occur several times."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in (SYSTEMD / unit).read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def seconds(unit: str, name: str) -> float:
    return float(options(unit)[name][0])


def container(unit: str) -> Container:
    """The unit as `container_checks` sees a program: with the example's settings, and a worker of the demo model."""
    (command,) = options(unit)["ExecStart"]
    program, *arguments = command.split()
    assert program == f"{PROGRAMS}/ivmix"
    return Container(
        place=unit,
        image="",
        arguments=tuple(argument.replace("${MODEL}", "demo") for argument in arguments),
        variables=env_file(SYSTEMD / "ivmix.env.example"),
        mounts=tuple(f"/var/lib/{name}" for name in options(unit)["StateDirectory"]),
    )


def copies(folder: Path) -> Path:
    """The units with programs that exist, in a folder for SYSTEMD_UNIT_PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("ivmix", "valkey-server"):
        shutil.copy("/bin/true", programs / name)
    for unit in UNITS:
        name = unit.replace("@.", "@demo.")
        (folder / name).write_text((SYSTEMD / unit).read_text().replace(PROGRAMS, str(programs)))
    return folder
