"""nginx and Caddy with the files of deploy/proxies; only names, ports and certificates are replaced."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import Certificates
from tests.child_processes import ends_with_tests
from tests.containers import DEPLOY
from tests.ports import free_port
from tests.processes import wait_for

PROXIES = DEPLOY / "proxies"
PATH = f"{os.environ['PATH']}:/usr/sbin"  # of an ordinary user it lacks the folder of nginx
NAMES = ("video.example.com", "tools.example.com")


@dataclass(frozen=True)
class Place:
    """Where a proxy listens, and where the API does."""

    folder: Path
    certificates: Certificates
    port: int
    plain_port: int
    api_port: int


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text


def with_local_name(config: str) -> tuple[str, str]:
    """Text of the file with `localhost` as the host, and the name that it had."""
    text = (PROXIES / config).read_text()
    (name,) = [name for name in NAMES if name in text]
    return text.replace(name, "localhost"), name


@contextmanager
def nginx(config: str, place: Place) -> Iterator[None]:
    text, _ = with_local_name(config)
    certificate, key = place.certificates.server
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{place.api_port}",
        "listen 443 ": f"listen 127.0.0.1:{place.port} ",
        "/etc/ssl/ivmix/fullchain.pem": str(certificate),
        "/etc/ssl/ivmix/privkey.pem": str(key),
    }
    if "listen 80;" in text:
        changes["listen 80;"] = f"listen 127.0.0.1:{place.plain_port};"
    site = place.folder / "ivmix.conf"
    site.write_text(replaced(text, changes))
    folders = "".join(
        f"{kind}_temp_path {place.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = place.folder / "nginx.conf"
    main.write_text(
        f"{'user root;' if os.getuid() == 0 else ''} daemon off; pid {place.folder}/pid;"
        f" error_log stderr; events {{}}\nhttp {{ access_log off;\n{folders}include {site};\n}}\n"
    )
    with _running(["nginx", "-e", "stderr", "-c", str(main)], place):
        yield


@contextmanager
def caddy(config: str, place: Place) -> Iterator[None]:
    text, name = with_local_name(config)
    certificate, key = place.certificates.server
    file = place.folder / "Caddyfile"
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{place.api_port}",
        # `localhost` of a Caddyfile would be a site with a certificate of Caddy's own authority.
        "\nlocalhost {\n": f"\nhttps://localhost:{place.port} {{\n\ttls {certificate} {key}\n",
        "\n{\n\tservers": "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tservers",
    }
    assert f"\n{name} {{\n" in (PROXIES / config).read_text()
    file.write_text(replaced(text, changes))
    with _running(["caddy", "run", "--adapter", "caddyfile", "--config", str(file)], place):
        yield


@contextmanager
def _running(command: list[str], place: Place) -> Iterator[None]:
    log = place.folder / "log"
    environment = {
        "PATH": PATH,
        **{name: str(place.folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")},
    }
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=ends_with_tests())
    try:
        wait_for(lambda: process.poll() is not None or _listens(place.port), timeout_s=30, hint=log.read_text())
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


Start = Callable[[str, Place], AbstractContextManager[None]]
SERVERS: dict[str, tuple[Start, str]] = {"nginx": (nginx, "nginx{}.conf"), "caddy": (caddy, "Caddyfile{}")}


def missing(name: str) -> bool:
    return shutil.which(name, path=PATH) is None


def new_place(folder: Path, certificates: Certificates, api_port: int, port: int) -> Place:
    folder.mkdir()
    return Place(folder, certificates, port, free_port(), api_port)
