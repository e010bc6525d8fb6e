"""A small client of the Videos API, for the command line and the demo. Knows HTTP; nothing of the server's insides.

It keeps to what every server of this format has, so it talks to others as well: multipart, status, content.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

POLL_S = 0.25
CREATE_ATTEMPTS = 3

Video = dict[str, Any]  # the wire's video object


class VideoFailedError(Exception):
    """The job ended without a video; the message is the server's."""


class RefusedError(Exception):
    """The server did not accept the request; the message is the server's and names the parameter."""


class VideoClient:
    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # With or without the /v1 that the SDKs want in a base URL.
        base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout_s, follow_redirects=True)

    def create(self, body: dict[str, Any]) -> Video:
        """Raises RefusedError with the server's sentence, or when there is no server."""
        # Multipart is what all servers read; a name makes it safe to send again what got no answer.
        parts = {name: (None, _text(value)) for name, value in body.items()}
        headers = {"idempotency-key": secrets.token_hex(16)}
        for attempts_left in reversed(range(CREATE_ATTEMPTS)):
            try:
                return self._checked(self._http.post("/v1/videos", files=parts, headers=headers)).json()
            except httpx2.ConnectError as e:
                raise RefusedError(f"nothing answers on {self._http.base_url}; start it with `ivmix up`") from e
            except httpx2.TransportError as e:
                if not attempts_left:
                    raise RefusedError(f"{self._http.base_url} does not answer ({type(e).__name__})") from e
        raise AssertionError("unreachable")

    def wait(self, video_id: str, on_progress: Callable[[Video], None]) -> Video:
        """Poll until the job has ended. Raises VideoFailedError if it ended without a video."""
        while True:
            video: Video = self._checked(self._http.get(f"/v1/videos/{video_id}")).json()
            on_progress(video)
            if video["status"] == "failed":
                error: dict[str, Any] = video.get("error") or {}
                raise VideoFailedError(f"{error.get('code', 'failed')}: {error.get('message', 'no reason given')}")
            if video["status"] == "completed":
                return video
            time.sleep(POLL_S)

    def download(self, video_id: str, path: Path) -> None:
        path.write_bytes(self._checked(self._http.get(f"/v1/videos/{video_id}/content")).content)

    @staticmethod
    def _checked(response: httpx2.Response) -> httpx2.Response:
        if response.is_success:
            return response
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {response.status_code}"
        raise RefusedError(message)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
