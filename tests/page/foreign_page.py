"""A page of another site: it is on `localhost`, the API on 127.0.0.1, which browsers regard as two sites."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ForeignPage:
    """A context. Its policy lets scripts of the page itself and everything of one other server in, and no styles."""

    def __enter__(self) -> ForeignPage:
        self._body, self._policy = b"", ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/"

    def show(self, text: str, *, may_load_from: str) -> None:
        self._body = text.encode()
        self._policy = (
            f"default-src 'none'; script-src 'unsafe-inline' {may_load_from}; connect-src {may_load_from}; "
            f"img-src {may_load_from}; media-src {may_load_from}"
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        shown = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_page = self.path == "/"
                body = shown._body if is_page else b""
                self.send_response(200 if is_page else 204)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-security-policy", shown._policy)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        return Handler
