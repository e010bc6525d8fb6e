"""Servers that the compose file, manifests and units start in addition to ours: Valkey with their configuration, the
bucket creation against an S3 server, the API's health check against an API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from service.process.embedded_valkey import find_valkey_binary
from service.settings import Settings
from tests.child_processes import ends_with_tests
from tests.containers import DEPLOY, compose, pod_specs, rendered
from tests.ports import free_port
from tests.processes import wait_for


def _from_compose(folder: Path) -> list[str]:
    return compose()["services"]["valkey"]["command"]


def _from_manifests(folder: Path) -> list[str]:
    documents = rendered("demo")
    (config,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == ("ConfigMap", "valkey")]
    (folder / "valkey.conf").write_text(config["data"]["valkey.conf"].replace("dir /data", f"dir {folder}"))
    (pod,) = [pod for workload, pod in pod_specs(documents) if workload["metadata"]["name"] == "valkey"]
    return [part.replace("/etc/valkey", str(folder)) for part in pod["containers"][0]["command"]]


def _from_systemd(folder: Path) -> list[str]:
    """The configuration file, which docs/operations.md gives its password."""
    text = (DEPLOY / "systemd" / "valkey.conf").read_text().replace("PASSWORD", "$VALKEY_PASSWORD")
    config = text.replace("dir /var/lib/ivmix-valkey", f"dir {folder}")
    return ["sh", "-c", f"exec valkey-server - <<CONFIG\n{config}\nCONFIG"]


@contextmanager
def running(command: list[str], folder: Path, password: str) -> Iterator[int]:
    """The server on a free port, its data in `folder`."""
    port = free_port()
    (folder / "bin").mkdir()
    (folder / "bin" / "valkey-server").symlink_to(find_valkey_binary())
    lines = f"port {port}\nbind 127.0.0.1\nrequirepass"
    script = command[-1].replace("requirepass", lines).replace("dir /data", f"dir {folder}")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VALKEY_PASSWORD": password}
    process = subprocess.Popen(
        [*command[:-1], script], env=environment, stdout=subprocess.DEVNULL, preexec_fn=ends_with_tests()
    )
    try:
        yield port
    finally:
        process.kill()  # the shell has become the server
        process.wait()


@pytest.mark.parametrize("source", [_from_compose, _from_manifests, _from_systemd])
def test_valkey_keeps_what_it_accepted_and_asks_for_a_password(tmp_path: Path, source: Any) -> None:
    with running(source(tmp_path), tmp_path, "a-secret") as port:
        redis: Any = Redis(port=port, password="a-secret", retry=Retry(NoBackoff(), 0))

        def answers() -> bool | None:
            try:
                return bool(redis.ping())
            except RedisError:
                return None

        wait_for(answers)
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
        assert {name: redis.config_get(name)[name] for name in wanted} == wanted
        redis.set("a", "b")
        assert list((tmp_path / "appendonlydir").iterdir())
        redis.execute_command("ACL", "SETUSER", "default", ">the-next")  # how the runbook changes it
        with Redis(port=port, password="the-next") as other:
            assert other.get("a") == b"b"
        assert redis.ping()
        redis.close()
        with pytest.raises(AuthenticationError), Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger:
            stranger.ping()


def test_bucket_ismade_once(s3: Settings, tmp_path: Path) -> None:
    program = compose()["configs"]["bucket"]["content"]
    assert s3.s3_endpoint_url is not None
    environment = {
        "PATH": os.environ["PATH"],
        "IVMIX_S3_ENDPOINT_URL": s3.s3_endpoint_url,
        "IVMIX_S3_BUCKET": "made-by-compose",
        "IVMIX_S3_ACCESS_KEY_ID": "test",
        "IVMIX_S3_SECRET_ACCESS_KEY": "test",
    }
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    admin = boto3.client("s3", endpoint_url=s3.s3_endpoint_url, **keys)
    names = [bucket["Name"] for bucket in admin.list_buckets()["Buckets"]]
    admin.close()
    assert names.count("made-by-compose") == 1


def test_health_check_of_the_api_distinguishes_ready_from_unreachable(server: str) -> None:
    _, *command = compose()["services"]["api"]["healthcheck"]["test"]
    command[0] = sys.executable

    def ends_with(port: int) -> int:
        asked = [re.sub(r"127\.0\.0\.1:8000", f"127.0.0.1:{port}", part) for part in command]
        return subprocess.run(asked, capture_output=True, check=False).returncode

    assert ends_with(int(server.rpartition(":")[2])) == 0
    assert ends_with(free_port()) != 0
