"""A real S3 server: OpenStack Swift with s3api from its wheel, on free ports of 127.0.0.1, without root.

Unlike moto it refuses wrong secrets, expired presigned URLs and wrong checksums.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.process import process_guard
from tests.certificates import Certificates
from tests.ports import free_port

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
DOMAIN = "s3.test"  # buckets are also reachable as BUCKET.s3.test (virtual addressing)
BACKENDS = ("account", "container", "object")
BIN = Path(sys.executable).parent

# One replica of everything, in one folder.
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(sys.argv[2::2], sys.argv[3::2]):
    builder = RingBuilder(4, 1, 0)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1.0, "meta": ""}
    builder.add_dev({**device, "replication_ip": device["ip"], "replication_port": device["port"]})
    builder.rebalance(seed=1)
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""

_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
log_level = WARNING
"""
# For busy machines: with the default timeouts (0.5 s to connect) listings lose entries and requests get 503.
_PATIENT = """\
conn_timeout = 20
node_timeout = 60
"""
_BACKEND = f"""\
devices = {{folder}}
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = {{name}}-server
[app:{{name}}-server]
use = egg:swift#{{name}}
container_update_timeout = 60
{_PATIENT}"""
_FILTERS = "catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo versioned_writes"
_PROXY = f"""\
[pipeline:main]
pipeline = {_FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000
{_PATIENT}[filter:s3api]
use = egg:swift#s3api
location = us-east-1
storage_domain = {DOMAIN}
[filter:tempauth]
use = egg:swift#tempauth
user_{ACCESS_KEY.replace(":", "_")} = {SECRET_KEY} .admin
[filter:cache]
use = egg:swift#memcache
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in _FILTERS.split()
    if name not in ("s3api", "tempauth", "cache")
)
_SWIFT = """\
[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
[storage-policy:0]
name = only
default = yes
"""


@dataclass
class SwiftServer:
    """A context. `url` speaks HTTP, `tls_url` the same data over TLS with a certificate of `certificates`."""

    folder: Path
    certificates: Certificates
    _ports: dict[str, int] = field(default_factory=dict[str, int])
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self._ports['tls']}"

    def __enter__(self) -> SwiftServer:
        (self.folder / "disk").mkdir(parents=True)
        refuse_without_attributes(self.folder)
        self._ports = {name: free_port() for name in (*BACKENDS, "proxy", "tls")}
        (self.folder / "swift.conf").write_text(_SWIFT)
        rings = [str(part) for name in BACKENDS for part in (name, self._ports[name])]
        command = [sys.executable, "-W", "ignore", "-c", _RINGS, str(self.folder), *rings]
        subprocess.run(command, check=True, timeout=START_TIMEOUT_S)
        try:
            for name in BACKENDS:
                self._launch(name, name, _BACKEND)
            self._launch("proxy", "proxy", _PROXY)
            certificate, key = self.certificates.server
            self._launch("tls", "proxy", f"cert_file = {certificate}\nkey_file = {key}\n{_PROXY}")
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(STOP_TIMEOUT_S)
        self._processes.clear()

    def _launch(self, name: str, program: str, template: str) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        facts: Mapping[str, object] = {"port": self._ports[name], "user": user, "folder": self.folder, "name": name}
        config = self.folder / f"{name}.conf"
        config.write_text((_COMMON + template).format(**facts))
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-W", "ignore", str(BIN / f"swift-{program}-server"), str(config)]
            # Exits with this process, even if that is killed.
            kept = [sys.executable, "-I", "-S", process_guard.__file__, *command]
            self._processes.append(
                subprocess.Popen(kept, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
            )

    def _wait_until_ready(self) -> None:
        """Wait until a request that involves the account server succeeds, not just until the port is open."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for url, authority in ((self.url, None), (self.tls_url, self.certificates.authority)):
            with closing(admin_client(url, (ACCESS_KEY, SECRET_KEY), authority)) as client:
                while not _answers(client):
                    dead = [process.args for process in self._processes if process.poll() is not None]
                    assert not dead, f"{dead}\n{self.logs()}"
                    assert time.monotonic() < deadline, f"Swift did not start\n{self.logs()}"
                    time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))


def admin_client(url: str, keys: tuple[str, str], authority: Path | None = None) -> Any:  # boto3 has no types
    return boto3.client(
        "s3",
        endpoint_url=url,
        verify=str(authority) if authority else None,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def _answers(client: Any) -> bool:
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def refuse_without_attributes(folder: Path) -> None:
    """Raise if the file system lacks extended attributes, where Swift stores metadata."""
    try:
        os.setxattr(folder, "user.ivmix", b"1")
    except OSError as e:
        raise RuntimeError(
            f"{folder}: no extended attributes on this file system ({e.strerror}); run pytest with --basetemp=FOLDER "
            "on another one, such as ext4 or xfs"
        ) from e
