"""Builds and runs the images of docker/ without a daemon or a registry: buildah, and podman with runc, as root.

The base image is a Debian that mmdebstrap makes, instead of Docker Hub's python; the rest of the Dockerfile is executed
unchanged. Everything is below one folder.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containers import IMAGES
from tests.debian_root import checkout, debian, wheels
from tests.external_programs import run
from tests.processes import clean_environment

BASE = "localhost/python:debian"
INSTALLED = re.compile(r"-c (\S+) '(\.\[.+\])'")  # constraints and extras, in a Dockerfile


@dataclass(frozen=True)
class ImageStore:
    folder: Path

    def _command(self, program: str) -> list[str]:
        state = ["--root", str(self.folder / "images"), "--runroot", str(self.folder / "run")]
        return [program, *state, "--storage-driver", "vfs"]

    def buildah(self, *arguments: str) -> str:
        return run(*self._command("buildah"), *arguments, timeout_s=1800).strip()

    def podman(self, *arguments: str) -> list[str]:
        return [*self._command("podman"), "--cgroup-manager", "cgroupfs", "--runtime", "runc", *arguments]

    def make_base(self) -> None:
        with debian(self.folder / "base", "python3", "python3-venv", "python-is-python3", "ca-certificates") as root:
            container = self.buildah("from", "scratch")
            self.buildah("add", "--quiet", container, str(root), "/")
            self.buildah("commit", "--quiet", "--rm", container, BASE)

    def build(self, image: str) -> int:
        """Build an image and return its size in megabytes."""
        source = checkout(self.folder / f"{image}-source")
        configuration = self.folder / "pip.conf"
        configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        ((constraints, extras),) = INSTALLED.findall(IMAGES[image].read_text())
        with wheels(self.folder / f"{image}-wheels", constraints, extras) as found:
            volumes = [f"--volume={found}:/wheels:ro", f"--volume={configuration}:/etc/pip.conf:ro"]
            options = ["--quiet", "--isolation=chroot", "--layers=false", f"--build-arg=PYTHON={BASE}", *volumes]
            dockerfile = source / IMAGES[image].relative_to(IMAGES[image].parents[1])
            self.buildah("build", *options, "--file", str(dockerfile), "--tag", image, str(source))
        assert self.buildah("inspect", "--type=image", "--format", "{{.OCIv1.Config.User}}", image) == "10001:10001"
        return int(run(*self.podman("image", "inspect", "--format", "{{.Size}}", image))) // 10**6

    @contextmanager
    def running(
        self, image: str, service: dict[str, Any], volumes: dict[Path, str], **environment: str
    ) -> Iterator[str]:
        """A container with the command and the restrictions of a service of the compose file, and the network of this
        machine. Yields its name."""
        name = f"ivmix-test-{service['command'][0]}"
        given = service["environment"] | environment
        options = (
            *("--detach", "--name", name, "--network=host", "--read-only", "--log-driver=k8s-file"),
            *(f"--cap-drop={capability}" for capability in service["cap_drop"]),
            *(f"--security-opt={option.removesuffix(':true')}" for option in service["security_opt"]),
            *(f"--tmpfs={mount}" for mount in service["tmpfs"]),
            *("--ulimit=nofile=4096:4096", "--ulimit=nproc=8192:8192"),
            *(f"--memory={service['mem_limit']}", f"--pids-limit={service['pids_limit']}"),
            *(f"--volume={path}:{place}" for path, place in volumes.items()),
            *(f"--env={variable}={value}" for variable, value in given.items() if value),
        )
        run(*self.podman("run", *options, image, *service["command"]), env=clean_environment())
        try:
            yield name
        except BaseException as e:
            ran = subprocess.run(self.podman("logs", name), capture_output=True, text=True, check=False)
            e.add_note(ran.stdout[-3000:] + ran.stderr[-3000:])
            raise
        finally:
            for arguments in (("stop", "--time", "60"), ("rm", "--force")):
                subprocess.run(self.podman(*arguments, name), stdout=subprocess.DEVNULL, check=False)
