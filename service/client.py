"""A small client of our own API, for the command line and the demo. Knows HTTP; nothing of the server's insides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

POLL_S = 0.25

Video = dict[str, Any]  # the wire's video object


class VideoFailedError(Exception):
    """The job ended without a video; the message is the server's."""


class RefusedError(Exception):
    """The server did not accept the request; the message is the server's and names the parameter."""


class VideoClient:
    def __init__(self, base_url: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx2.Client(base_url=base_url, timeout=timeout_s, follow_redirects=True)

    def create(self, body: dict[str, Any]) -> Video:
        """Raises RefusedError with the server's sentence, or when there is no server."""
        try:
            return self._checked(self._http.post("/v1/videos", json=body)).json()
        except httpx2.ConnectError as e:
            raise RefusedError(f"nothing answers on {self._http.base_url}; start it with `ivmix up`") from e

    def wait(self, video_id: str, on_progress: Callable[[Video], None]) -> Video:
        """Poll until the job has ended. Raises VideoFailedError if it ended without a video."""
        while True:
            video: Video = self._checked(self._http.get(f"/v1/videos/{video_id}")).json()
            on_progress(video)
            if video["status"] == "failed":
                raise VideoFailedError(f"{video['error']['code']}: {video['error']['message']}")
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
