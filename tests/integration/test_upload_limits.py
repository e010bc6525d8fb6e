"""Limits of uploads: bytes, memory, disk, and how many at a time."""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from service.settings import Settings
from service.wiring import Services, open_services
from tests.api_process import api_process
from tests.conftest import serve
from tests.factories import PROMPT
from tests.reference_calls import PICTURE, error_of, left_over, send, stored


def test_a_client_that_leaves_leaves_no_file(server: str, services: Services) -> None:
    target = urlsplit(server)
    head = (
        b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 900000\r\n\r\n--x\r\n"
        b'Content-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((target.hostname, target.port), timeout=20) as connection:
        connection.sendall(head + os.urandom(200_000))
        wait_until(lambda: sum(path.stat().st_size for folder in left_over(services) for path in folder.iterdir()) > 0)
    wait_until(lambda: left_over(services) == [])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_30_megabytes_are_refused_at_the_limit_without_memory(settings: Settings, tmp_path: Path) -> None:
    """Sent without a length, so that the server sees the limit only when it is passed."""
    services, most, sent = open_services(settings), 0, 0
    data = bytes(2**16)

    def body() -> Iterator[bytes]:
        nonlocal most, sent
        yield b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + PROMPT.encode()
        yield b'\r\n--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
        yield PICTURE
        for _ in range(30 * 2**20 // len(data)):
            yield data
            sent += len(data)
            most = max(most, resident_bytes(pid))
        yield b"\r\n--x--\r\n"

    with api_process(settings, tmp_path) as api, httpx2.Client(base_url=api.url, timeout=30) as http:
        pid = process_on(api.port)
        assert send(http).status_code == 200  # what is imported once
        before = resident_bytes(pid)
        headers = {"content-type": "multipart/form-data; boundary=x"}
        error = error_of(http.post("/v1/videos", content=body(), headers=headers), 413)
        known = error_of(send(http, bytes(30 * 2**20)), 413)
    assert error == known
    assert (error["param"], error["code"]) == ("input_reference", "body_too_large")
    assert str(20 * 2**20) in error["message"]
    assert sent >= 19 * 2**20
    assert most - before < 6 * 2**20, f"{(most - before) / 2**20:.1f} MiB"
    assert left_over(services) == []
    services.close()


def process_on(port: int) -> int:
    """The id of the process that listens on the port."""
    inode = next(
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    )
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) == f"socket:[{inode}]" for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    raise AssertionError("no process listens")


def test_a_data_url_has_a_limit_of_its_own(settings: Settings) -> None:
    small = open_services(settings.model_copy(update={"max_body_bytes": 2000, "max_data_url_bytes": 5000}))
    with serve(small) as url, httpx2.Client(base_url=url) as http:
        for send_as in ("json", "data", "files"):

            def body(text: str, kind: str = send_as) -> dict[str, Any]:
                fields = {"prompt": PROMPT, "input_reference": text}
                return {kind: {name: (None, value) for name, value in fields.items()} if kind == "files" else fields}

            noise = base64.b64encode(os.urandom(2000)).decode()
            assert "unknown kind" in error_of(http.post("/v1/videos", **body("data:a/b;base64," + noise)))["message"]
            error = error_of(http.post("/v1/videos", **body("data:a/b;base64," + 3 * noise)), 413)
            assert "larger than 5000 bytes" in error["message"]
        error = error_of(http.post("/v1/videos", json={"prompt": PROMPT, "user": "x" * 3000}), 413)
        assert "larger than 2000 bytes" in error["message"]
    small.close()


def test_a_full_disk_refuses_a_file_before_it_is_read(settings: Settings) -> None:
    full = open_services(settings.model_copy(update={"min_free_mb": 10**9}))
    with serve(full) as url, httpx2.Client(base_url=url) as http:
        assert error_of(send(http), 503)["code"] == "no_space"
    assert (stored(full), left_over(full)) == ([], [])
    full.close()


def test_only_so_many_uploads_at_a_time(services: Services) -> None:
    from service.api.uploads import MOST_UPLOADS_PER_CLIENT, Uploads
    from service.errors import RateLimited

    uploads = Uploads(services.settings)
    opened = [uploads.folder("one") for _ in range(MOST_UPLOADS_PER_CLIENT)]
    folders = [folder.__enter__() for folder in opened]
    with pytest.raises(RateLimited), uploads.folder("one"):
        pass
    old = folders[0].with_name(folders[0].name + "-old")
    old.mkdir()
    os.utime(old, (0, 0))
    with uploads.folder("two"):
        assert not old.exists(), "left behind by a process that ended"
    for folder in opened:
        folder.__exit__(None, None, None)
    with uploads.folder("one"):
        assert len(left_over(services)) == 1
