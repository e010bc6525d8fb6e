"""Debian's Chromium, which tests use where it is installed: plays videos on a page of a loopback server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.child_processes import ends_with_tests

# IVMIX_CHROMIUM: another Chromium that decodes H.264, as Debian's does.
CHROMIUM = os.environ.get("IVMIX_CHROMIUM") or shutil.which("chromium")
MISSING = "no chromium: `apt-get install chromium`, or set IVMIX_CHROMIUM to the path of one"
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--autoplay-policy=no-user-gesture-required",
)
TIMEOUT_S = 90  # a busy machine takes seconds to start it

# Plays every video to its end and reports them all in one POST.
PAGE = """<!doctype html><title>videos</title><script>
const played = url => new Promise(done => {
  const video = Object.assign(document.createElement("video"), {src: url, muted: true})
  const report = () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: video.videoWidth, height: video.videoHeight})
    const pen = canvas.getContext("2d")
    if (video.videoWidth) pen.drawImage(video, 0, 0)
    done({
      size: [video.videoWidth, video.videoHeight], ended: video.ended, seconds: video.currentTime,
      error: video.error?.message ?? null,
      corner: video.videoWidth ? [...pen.getImageData(2, video.videoHeight / 2, 1, 1).data.slice(0, 3)] : null,
    })
  }
  video.onended = video.onerror = report
  document.documentElement.append(video)
  video.play().catch(report)
})
Promise.all(URLS.map(played)).then(all => fetch("/", {method: "POST", body: JSON.stringify(all)}))
</script>"""


def play(profile: Path, *files: Path) -> list[dict[str, Any]]:
    """Play the files at the same time, to their ends, and return what the browser reports of each.

    `size` (width, height), `ended`, `seconds` played, `error` or None, and `corner`: the colour (R, G, B) at the left
    edge of the last frame.

    Args:
        profile: a folder that does not exist yet.
    """
    urls = [f"/{i}.mp4" for i in range(len(files))]
    pages = {"/": ("text/html", PAGE.replace("URLS", json.dumps(urls)).encode())}
    pages |= {url: ("video/mp4", file.read_bytes()) for url, file in zip(urls, files, strict=True)}
    reports: SimpleQueue[bytes] = SimpleQueue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(pages, reports))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    assert CHROMIUM, MISSING
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
    browser = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=ends_with_tests(),
    )
    try:
        return json.loads(reports.get(timeout=TIMEOUT_S))
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        server.shutdown()
        server.server_close()


def _handler(pages: Mapping[str, tuple[str, bytes]], reports: SimpleQueue[bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = pages.get(self.path, ("text/plain", b""))
            self._answer(200 if self.path in pages else 404, kind, body)

        def do_POST(self) -> None:
            reports.put(self.rfile.read(int(self.headers["content-length"])))
            self._answer(200, "text/plain", b"")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    return Handler
