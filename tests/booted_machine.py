"""A Debian in a folder, booted with its own systemd by systemd-nspawn: for units as systemd really runs them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import wait_for


@dataclass(frozen=True)
class Machine:
    root: Path
    leader: int  # its process 1

    def run(self, script: str, *, timeout_s: float = 1200) -> str:
        """Output of a script of bash, in the folder of the checkout. A command that fails ends it and the test."""
        ran = self.try_run(f"set -euo pipefail; cd /root/ivmix\n{script}", timeout_s=timeout_s)
        assert ran.returncode == 0, f"{script}\nexit status {ran.returncode}\n{ran.stdout[-6000:]}"
        return ran.stdout

    def try_run(self, script: str, *, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        return subprocess.run(
            ["nsenter", "--target", str(self.leader), "--all", "--wd", "bash", "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@contextmanager
def booted(root: Path, binds: dict[Path, str]) -> Iterator[Machine]:
    """Without a network but its own loopback, so that its ports are not those of this machine."""
    options = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--machine=ivmix-test"]
    shown = [f"--bind-ro={path}:{place}" for path, place in binds.items()]
    log = root.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["systemd-nspawn", *options, *shown, "--directory", str(root), "--boot"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        leader = wait_for(lambda: _child_of(process), timeout_s=60, hint=f"for systemd; see {log}")
        machine = Machine(root, leader)
        states = {"running", "degraded"}
        wait_for(
            lambda: machine.try_run("systemctl is-system-running").stdout.strip() in states or None,
            timeout_s=120,
            hint=f"for the boot: {log.read_text(errors='replace')[-2000:]}",
        )
        yield machine
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _child_of(process: subprocess.Popen[bytes]) -> int | None:
    """Process id of the container's systemd."""
    assert process.poll() is None, "systemd-nspawn ended"
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
    return None
