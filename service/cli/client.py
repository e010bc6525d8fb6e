"""A small HTTP client of the Videos API, for the command line and the demo.

It uses only what every server of this format offers (multipart requests, status, content), so it works with others too.
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

Video = dict[str, Any]  # the API's video object


class VideoFailedError(Exception):
    """The job failed; the message is the server's."""


class RequestError(Exception):
    """The server rejected the request, with the server's message, or is unreachable."""


class VideoClient:
    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Accept a base URL with /v1, as SDKs require it, and without.
        base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout_s, follow_redirects=True)

    def create(self, body: dict[str, Any]) -> Video:
        """Create a video. Raises RequestError."""
        # All servers accept multipart. The idempotency key makes it safe to repeat a request that got no response.
        parts = {name: (None, _text(value)) for name, value in body.items()}
        headers = {"idempotency-key": secrets.token_hex(16)}
        for attempts_left in reversed(range(CREATE_ATTEMPTS)):
            try:
                return self._checked(self._http.post("/v1/videos", files=parts, headers=headers)).json()
            except httpx2.ConnectError as e:
                raise RequestError(f"there is no server at {self._http.base_url}; start one with `ivmix up`") from e
            except httpx2.TransportError as e:
                if not attempts_left:
                    raise RequestError(f"{self._http.base_url} did not respond ({type(e).__name__}); try again") from e
        raise AssertionError("unreachable")

    def wait(self, video_id: str, on_progress: Callable[[Video], None]) -> Video:
        """Poll until the video is completed. Raises VideoFailedError if the job fails."""
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
        raise RequestError(message)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
