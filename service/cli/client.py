"""A small HTTP client of the Videos API, for the command line and the demo.

It uses only what every server of this format offers (multipart requests, status, content), so it works with others too.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx2

POLL_S = 0.25
SLOW_POLL_S = 1.0
FAST_POLLS = 40  # ten seconds: then a short clip is done
CREATE_ATTEMPTS = 3
RETRY_S = 120.0  # a server that restarts, or a proxy without one
RETRIED_STATUS = (429, 502, 503, 504)

Video = dict[str, Any]  # the API's video object


class VideoFailedError(Exception):
    """The job failed; the message is the server's."""


class RequestError(Exception):
    """The server rejected the request, with the server's message, or is unreachable."""


class VideoClient:
    """A context: it keeps connections open.

    Args:
        base_url: with or without `http://`, and with or without `/v1`.
        timeout_s: for each request.
        retry_s: how long reading is tried again while a server that answered before does not answer.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_s: float = 30.0, retry_s: float = RETRY_S
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        url = base_url if "://" in base_url else f"http://{base_url}"
        url = url.rstrip("/").removesuffix("/v1")  # SDKs require it
        try:
            self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_s, follow_redirects=True)
        except (httpx2.InvalidURL, UnicodeError) as e:
            raise RequestError(f"'{base_url}' is not a URL ({e}); it looks like http://127.0.0.1:8000") from e
        self._retry_s, self._has_answered = retry_s, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def create(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Video:
        """Create a video. A Path in the body is a file that is sent. Raises RequestError.

        Args:
            idempotency_key: of a request that may have been sent before, also by another process; None: a new one.
        """
        # The idempotency key makes it safe to repeat a request that got no response.
        headers = {"idempotency-key": idempotency_key or secrets.token_hex(16)}
        for attempts_left in reversed(range(CREATE_ATTEMPTS)):
            try:
                return self._checked(self._post(body, headers)).json()
            except httpx2.TransportError as e:
                if not attempts_left or isinstance(e, httpx2.ConnectError | httpx2.UnsupportedProtocol):
                    raise self._no_answer(e) from e
        raise AssertionError("unreachable")

    def _post(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        """All servers accept multipart. Raises RequestError for a file that cannot be read."""
        with ExitStack() as stack:
            parts: dict[str, Any] = {}
            for name, value in body.items():
                parts[name] = (None, _text(value)) if not isinstance(value, Path) else _opened(stack, value)
            return self._http.post("/v1/videos", files=parts, headers=headers)

    def estimate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of such a video, and what it costs; only this service answers it. Raises RequestError."""
        try:
            return self._checked(self._http.post("/v1/videos/estimate", json=dict(body))).json()
        except httpx2.TransportError as e:
            raise self._no_answer(e) from e

    def get(self, video_id: str) -> Video:
        return self._read(f"/v1/videos/{video_id}").json()

    def list(self, **conditions: Any) -> dict[str, Any]:
        """One page: `data`, `has_more`, `last_id`. Conditions are the API's query parameters; None is left out."""
        given = {name: value for name, value in conditions.items() if value is not None}
        return self._read("/v1/videos", params=given).json()

    def cancel(self, video_id: str) -> Video:
        try:
            return self._checked(self._http.post(f"/v1/videos/{video_id}/cancel")).json()
        except httpx2.TransportError as e:
            raise self._no_answer(e) from e

    def wait(self, video_id: str, on_progress: Callable[[Video], None]) -> Video:
        """Poll until the video is completed. Raises VideoFailedError if the job fails."""
        polls = 0
        while True:
            video: Video = self._read(f"/v1/videos/{video_id}", on_retry=on_progress).json()
            on_progress(video)
            if video["status"] == "failed":
                error: dict[str, Any] = video.get("error") or {}
                raise VideoFailedError(f"{error.get('code', 'failed')}: {error.get('message', 'no reason given')}")
            if video["status"] == "completed":
                return video
            time.sleep(POLL_S if polls < FAST_POLLS else SLOW_POLL_S)
            polls += 1

    def download(self, video_id: str, path: Path) -> None:
        """Write the file of a completed video, whole or not at all. Raises RequestError."""
        content = self._read(f"/v1/videos/{video_id}/content").content
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError as e:
            part.unlink(missing_ok=True)
            raise RequestError(f"{path} cannot be written: {e.strerror}; {video_id} is still on the server") from e

    def _read(
        self, path: str, *, params: Mapping[str, Any] | None = None, on_retry: Callable[[Video], None] | None = None
    ) -> httpx2.Response:
        """GET; tried again for a while if the server answered before. Raises RequestError."""
        deadline = time.monotonic() + self._retry_s
        pause = POLL_S
        while True:
            may_retry = self._has_answered and time.monotonic() < deadline
            try:
                response = self._http.get(path, params=params)
                if response.status_code not in RETRIED_STATUS or not may_retry:
                    return self._checked(response)
            except httpx2.TransportError as e:
                if not may_retry:
                    raise self._no_answer(e) from e
            if on_retry:
                on_retry({"status": "the server does not answer, trying again"})
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        if response.is_success:
            self._has_answered = True
            return response
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self._http.base_url} answered HTTP {response.status_code}"
        raise RequestError(message)

    def _no_answer(self, e: httpx2.TransportError) -> RequestError:
        url = str(self._http.base_url)
        if isinstance(e, httpx2.UnsupportedProtocol):
            return RequestError(f"{url} is not a URL of a server; it looks like http://127.0.0.1:8000")
        if isinstance(e, httpx2.ConnectError):
            return RequestError(f"there is no server at {url}; start one with `ivmix up`")
        return RequestError(f"{url} did not respond ({type(e).__name__}); try again")


def _opened(stack: ExitStack, path: Path) -> tuple[str, BinaryIO]:
    try:
        return path.name, stack.enter_context(path.open("rb"))
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}") from e


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
