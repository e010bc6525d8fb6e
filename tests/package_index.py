"""A package index on a local port with tiny wheels, and what else an index can do: refuse, hang, not have it."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import quote, unquote


def wheel(name: str, version: str, requires: Sequence[str] = ()) -> tuple[str, bytes]:
    """File name and bytes of a package with one module that has the version, and with test programs as torch's."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: all\n"
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{name}/test/a_test": "",
        f"{name}/bin/test_b": "",
        f"{name}/bin/shm_manager": "",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {needed}\n" for needed in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    record = "".join(f"{path},sha256={digests[path].rstrip(b'=').decode()},{len(files[path])}\n" for path in files)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


class IndexHandler(BaseHTTPRequestHandler):
    """Answers like a package index. Subclasses set what there is."""

    wheels: ClassVar[dict[str, tuple[str, bytes]]] = {}
    is_broken = False
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        part = unquote(self.path.strip("/").split("/")[-1])
        files = dict(self.wheels.values())
        if part in files and not self.is_broken:
            self._answer(files[part], "application/zip")
        elif part in self.wheels:
            link = quote(self.wheels[part][0])
            self._answer(f'<!DOCTYPE html><a href="{link}">{link}</a>'.encode(), "text/html")
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815  the server looks for this name

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def package_index(
    packages: Mapping[str, str], *, asked: list[str] | None = None, is_broken: bool = False
) -> Iterator[str]:
    """URL of an index with these versions of packages.

    Args:
        asked: gets the path of every request.
        is_broken: wheels are listed, but not there.
    """
    has = {
        "wheels": {name: wheel(name, version) for name, version in packages.items()},
        "asked": [] if asked is None else asked,
        "is_broken": is_broken,
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (IndexHandler,), has)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


@contextmanager
def silent_server(*first_bytes: bytes) -> Iterator[str]:
    """URL of a server that accepts connections, writes these bytes and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                connection.sendall(b"".join(first_bytes))

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        for connection in held:
            connection.close()
