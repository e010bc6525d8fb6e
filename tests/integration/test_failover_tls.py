"""rediss+sentinel://: TLS with client certificates to the Sentinels and to the primary that they name, through a
failover. Valkey's wheel has no TLS: servers and Sentinels run behind TLS fronts, and speak plainly among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from service.errors import ConfigurationError
from service.jobs.rq_queues import generate_queue
from service.redis_connection.check import check_redis
from service.redis_connection.client import open_redis
from service.settings import Settings
from service.wiring import open_services
from tests.certificates import Certificates
from tests.factories import make_job
from tests.processes import wait_for
from tests.sentinels import SENTINEL_PASSWORD, SERVER_CONFIG, SERVICE, SentinelProcess
from tests.tls_front import TlsFront
from tests.valkey import Valkey


@dataclass
class TlsSet:
    """A primary and a replica, each on a port that takes TLS, and two Sentinels that know these ports."""

    primary: Valkey
    ports: list[int]
    sentinels: list[SentinelProcess]
    settings: dict[str, Any]

    def named_port(self) -> int:
        """Of the primary that both Sentinels name."""
        named = {sentinel.client.sentinel_get_master_addr_by_name(SERVICE)[1] for sentinel in self.sentinels}
        return named.pop() if len(named) == 1 else 0

    def is_complete(self) -> bool:
        try:
            states = [sentinel.client.sentinel_masters()[SERVICE] for sentinel in self.sentinels]
            replicas = [sentinel.client.sentinel_slaves(SERVICE) for sentinel in self.sentinels]
        except (RedisError, KeyError):  # they are starting
            return False
        return all(state["num-other-sentinels"] == 1 for state in states) and all(
            [replica["port"] for replica in known if replica["master-link-status"] == "ok"] == self.ports[1:]
            for known in replicas
        )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[TlsSet]:
    certificates = Certificates.make(tmp_path / "certificates")
    with ExitStack() as stack:
        servers = [stack.enter_context(Valkey(tmp_path / name, more=SERVER_CONFIG)) for name in ("first", "second")]
        ports = [stack.enter_context(_front(server.port, certificates, takes_plain=True)) for server in servers]
        with open_redis(servers[1].url) as replica:
            replica.config_set("replica-announce-port", ports[1])
            replica.replicaof("127.0.0.1", ports[0])
        sentinels = [SentinelProcess(tmp_path / f"sentinel-{number}", ports[0]) for number in range(2)]
        for sentinel in sentinels:
            stack.callback(sentinel.kill)
        fronts = [stack.enter_context(_front(sentinel.port, certificates)) for sentinel in sentinels]
        nodes = ",".join(f"localhost:{port}" for port in fronts)
        settings = {
            "redis_url": f"rediss+sentinel://:secret@{nodes}/{SERVICE}/0",
            "redis_sentinel_password": SENTINEL_PASSWORD,
            "redis_ca_file": certificates.authority,
            "redis_cert_file": certificates.client[0],
            "redis_key_file": certificates.client[1],
            "redis_wait_replicas": 1,
            "data_dir": tmp_path / "data",
        }
        found = TlsSet(servers[0], ports, sentinels, settings)
        wait_for(lambda: found.is_complete() or None, timeout_s=60, hint="for Sentinels and the replica")
        yield found


def _front(port: int, certificates: Certificates, *, takes_plain: bool = False) -> TlsFront:
    return TlsFront(port, certificates, asks_for_certificate=True, takes_plain=takes_plain)


def test_jobs_survive_a_failover_with_tls_everywhere(running: TlsSet) -> None:
    for without, words in (
        (("redis_ca_file",), "; set IVMIX_REDIS_CA_FILE to its CA"),
        (("redis_cert_file", "redis_key_file"), "requires a client certificate; set IVMIX_REDIS_CERT_FILE"),
    ):
        address = Settings(**running.settings | dict.fromkeys(without)).redis_address
        assert address is not None
        with pytest.raises(ConfigurationError, match=f"^IVMIX_REDIS_URL: the Sentinel localhost.*{words}"):
            check_redis(address)
    with closing(open_services(Settings(**running.settings))) as services:
        check_redis(services.redis_url)
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        running.primary.kill()
        wait_for(lambda: running.named_port() == running.ports[1] or None, timeout_s=60, hint="for a promotion")
        assert services.store.get(job.id) == job
        check_redis(services.redis_url)
        assert services.store.start(job.id, "execution") is not None
