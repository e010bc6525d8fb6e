"""What is wrong with the server behind IVMIX_REDIS_URL is said in one sentence, without the password."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from redis import Redis

from service.errors import ConfigurationError
from service.redis_connection.check import RedisAway, check_redis
from tests.certificates import Certificates
from tests.ports import free_port
from tests.processes import wait_for
from tests.tls_front import TlsFront
from tests.valkey import Valkey

PASSWORD = "secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def refusal(url: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_redis(url)
    message = raised.value.message
    assert message.startswith("IVMIX_REDIS_URL")
    assert PASSWORD not in message.replace("PASSWORD", "")
    assert ":p@" not in message
    return message


def tls_url(port: int, *, host: str = "localhost", ca: Path | None = None) -> str:
    return f"rediss://:{PASSWORD}@{host}:{port}" + (f"?ssl_ca_certs={ca}" if ca else "")


@contextmanager
def replying(reply: bytes) -> Iterator[int]:
    """Port of a server that gives one answer to everything."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if reply[:1].isalnum():  # a banner
                self.request.sendall(reply)
            while request := self.request.recv(4096):
                self.request.sendall(b"+PONG\r\n" if reply is OLD_SERVER and b"PING" in request else reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as tcp:
        tcp.daemon_threads = True
        threading.Thread(target=tcp.serve_forever, args=(0.05,), daemon=True).start()
        yield tcp.server_address[1]
        tcp.shutdown()


def test_a_usable_server_passes(server: Valkey, certificates: Certificates) -> None:
    check_redis(server.url)
    with TlsFront(server.port, certificates) as port:
        check_redis(tls_url(port, ca=certificates.authority))
    with Redis.from_url(server.url) as redis:
        assert redis.keys("*check*") == []


@pytest.mark.parametrize(
    ("credentials", "words"),
    [(":wrong@", "rejects the user or password"), ("stranger:p@", "rejects the user"), ("", "requires a password")],
)
def test_wrong_credentials(credentials: str, words: str, server: Valkey) -> None:
    assert words in refusal(f"redis://{credentials}127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("~ivm:* +@all", "the keys ~rq:*"),
        ("~rq:* +@all", "the keys ~ivm:*"),
        ("+@all", "the keys ~ivm:* ~rq:*"),
        ("~* +@all -@scripting", "the commands EVAL EVALSHA"),
        ("~* +@all -hset -blmove", "the commands BLMOVE HSET"),
        ("~* +@read", "and"),
        ("~*", "more"),
        ("%R~* +@all", "the keys ~ivm:* ~rq:*"),
    ],
)
def test_missing_permissions_are_named(rules: str, words: str, server: Valkey) -> None:
    with Redis.from_url(server.url) as redis:
        redis.execute_command("ACL", "SETUSER", "user", "reset", "on", ">p", *rules.split())
    message = refusal(f"redis://user:p@127.0.0.1:{server.port}")
    assert words in message
    assert "docs/operations.md" in message


def test_databases_that_do_not_exist(server: Valkey) -> None:
    assert "does not have the database" in refusal(f"{server.url[:-1]}99")
    assert "number of a database" in refusal(f"{server.url[:-1]}videos")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost", "must begin with redis://"),
        ("localhost:6379", "must begin with redis://"),
        ("", "must begin with redis://"),
        ("redis://:sec/ret@localhost:6379", "%2F"),
        ("redis://:sec#ret@localhost:6379", "%23"),
        ("redis://localhost:port", "is not of the form"),
        ("redis://localhost:6379/0?sockt_timeout=1", "no option 'sockt_timeout'"),
        ("redis://localhost:6379/0?socket_timeout=long", "socket_timeout"),
        ("rediss://localhost:6379/0?ssl_cert_reqs=maybe", "maybe"),
    ],
)
def test_urls_that_are_none(url: str, words: str) -> None:
    assert words in refusal(url)


def test_certificates_that_are_not_trusted(server: Valkey, certificates: Certificates, tmp_path: Path) -> None:
    expired = Certificates.make(tmp_path, valid_for=timedelta(days=-1))
    with TlsFront(server.port, certificates) as port:
        assert "not trusted: unable to get local issuer" in refusal(tls_url(port))
        assert "not trusted: IP address mismatch" in refusal(tls_url(port, host="127.0.0.2", ca=certificates.authority))
        assert "cannot be read (No such file" in refusal(tls_url(port, ca=tmp_path / "missing.pem"))
    with TlsFront(server.port, expired) as port:
        assert "certificate has expired" in refusal(tls_url(port, ca=expired.authority))


def test_tls_on_one_side_only(server: Valkey, certificates: Certificates) -> None:
    assert "use redis:// instead" in refusal(f"rediss://:{PASSWORD}@localhost:{server.port}")
    with TlsFront(server.port, certificates) as port:
        assert "use rediss:// instead" in refusal(f"redis://:{PASSWORD}@localhost:{port}")


def test_servers_that_are_no_redis(certificates: Certificates) -> None:
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    for scheme in ("redis", "rediss"):
        assert "is not a Redis server" in refusal(f"{scheme}://127.0.0.1:{http.server_port}")
    http.shutdown()
    http.server_close()
    for reply in (b"SSH-2.0-OpenSSH_9.2\r\n", b"ERROR\r\n", b"+OK POP3 ready\r\n"):
        with replying(reply) as port:
            assert "is not a Redis server" in refusal(f"redis://127.0.0.1:{port}")


def test_an_https_server_is_no_redis(certificates: Certificates) -> None:
    https = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, certificates.server))
    https.socket = context.wrap_socket(https.socket, server_side=True)
    threading.Thread(target=https.serve_forever, args=(0.05,), daemon=True).start()
    assert "is not a Redis server" in refusal(tls_url(https.server_port, ca=certificates.authority))
    https.shutdown()
    https.server_close()


OLD_SERVER = b"%3\r\n+version\r\n+6.0.16\r\n+proto\r\n:3\r\n+role\r\n+master\r\n"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"-ERR unknown command 'HELLO'\r\n", "older than Redis 6.2"),
        (OLD_SERVER, "version 6.0.16"),
        (b"-DENIED Redis is running in protected mode\r\n", "protected mode"),
    ],
)
def test_servers_that_do_not_suit(reply: bytes, words: str) -> None:
    with replying(reply) as port:
        assert words in refusal(f"redis://127.0.0.1:{port}")


def test_cluster_mode_and_replicas(server: Valkey, tmp_path: Path) -> None:
    with Valkey(tmp_path / "cluster", more=f"cluster-enabled yes\ncluster-port {free_port()}\n") as cluster:
        assert "cluster mode" in refusal(cluster.url)
    more = f"replicaof 127.0.0.1 {server.port}\nmasterauth {PASSWORD}\n"
    with Valkey(tmp_path / "replica", more=more) as replica:
        assert "read-only replica" in refusal(replica.url)


def test_absent_servers_are_not_refused(server: Valkey) -> None:
    """No server listens, no such name yet, frozen, loading, too many clients: all of that may pass."""
    for url in (f"redis://127.0.0.1:{free_port()}", "redis://stranger.invalid", "unix:///nowhere/socket"):
        with pytest.raises(RedisAway, match="IVMIX_REDIS_URL"):
            check_redis(url)
    for reply in (b"-LOADING Redis is loading the dataset in memory\r\n", b"-ERR max number of clients reached\r\n"):
        with replying(reply) as port, pytest.raises(RedisAway):
            check_redis(f"redis://127.0.0.1:{port}")
    server.freeze()
    try:
        with pytest.raises(RedisAway):
            check_redis(server.url)
    finally:
        server.thaw()
    wait_for(lambda: check_redis(server.url) is None or None)


def test_a_server_that_hangs_up_is_absent() -> None:
    """As a load balancer without servers does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(RedisAway):
            check_redis(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
