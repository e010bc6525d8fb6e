"""API clients that submit, poll, cancel and delete at random and record every response."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.faults.history import History

TIMEOUT_S = 8.0
OPEN_AT_ONCE = 4  # unfinished videos per client
AHEAD = 8  # videos submitted before the first fault
STEPS = (5, 25)
PROMPTS = ("a red circle moving right on a teal background", "a blue square moving up on a black background")
CANCELS, DELETES, KEYS, REPEATS = 0.12, 0.1, 0.6, 0.1  # shares of all videos; KEYS: with an idempotency key
ENDED = ("completed", "failed")


@dataclass
class Clients:
    """A context. Together the clients submit until `jobs` videos are accepted, then only follow those.

    Args:
        progress: Share of the faults that were injected, 0 to 1, so that submissions are spread over all faults.
    """

    url: str
    callback_url: str
    api_keys: Mapping[str, str]
    history: History
    jobs: int
    seed: int
    count: int = 4  # named client-0, client-1, ..
    accepted: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    progress: Callable[[], float] = lambda: 1.0
    _clients: list[Client] = field(default_factory=list)
    _submitted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        for i in range(self.count):
            client = Client(f"client-{i}", self, random.Random(f"{self.seed}.{i}"))
            self._clients.append(client)
            self._threads.append(threading.Thread(target=client.run, name=client.name, daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    @property
    def unfinished(self) -> int:
        """Number of videos whose final state their client has not seen."""
        return sum(len(client.open) for client in self._clients)

    def has_reached(self, progress: float) -> bool:
        return len(self.accepted) >= self.jobs * progress - AHEAD

    def may_submit(self) -> bool:
        with self._lock:
            if self._submitted >= min(self.jobs, AHEAD + self.jobs * self.progress()):
                return False
            self._submitted += 1
            return True


@dataclass
class Client:
    name: str
    all: Clients
    random: random.Random
    open: list[str] = field(default_factory=list)
    to_cancel: set[str] = field(default_factory=set)

    def run(self) -> None:
        with httpx2.Client(base_url=self.all.url, timeout=TIMEOUT_S, trust_env=False) as http:
            while not self.all.stopping.is_set():
                if len(self.open) < OPEN_AT_ONCE and self.all.may_submit():
                    self._submit(http)
                elif self.open:
                    self._follow(http, self.random.choice(self.open))
                self.all.stopping.wait(self.random.uniform(0.05, 0.3))

    def _submit(self, http: httpx2.Client) -> None:
        """Repeat until a video is accepted. Without an idempotency key, every attempt may create another one."""
        key = uuid.UUID(int=self.random.getrandbits(128)).hex if self.random.random() < KEYS else None
        body = {
            "prompt": self.random.choice(PROMPTS),
            "num_inference_steps": self.random.randint(*STEPS),
            "seed": self.random.randrange(2**32),
            "callback_url": self.all.callback_url,
        }
        headers = {"idempotency-key": key} if key else {}
        while not self.all.stopping.is_set():
            answer = self._request(http, "submit", "POST", "/v1/videos", key=key, json=body, headers=headers)
            if answer is not None and "id" in answer:
                self.all.accepted.add(answer["id"])
                self.open.append(answer["id"])
                if self.random.random() < CANCELS:
                    self.to_cancel.add(answer["id"])
                if key and self.random.random() < REPEATS:  # as after a lost response
                    self._request(http, "submit", "POST", "/v1/videos", key=key, json=body, headers=headers)
                return
            self.all.stopping.wait(self.random.uniform(0.2, 1.0))

    def _follow(self, http: httpx2.Client, video_id: str) -> None:
        if video_id in self.to_cancel and self.random.random() < 0.2:
            self.to_cancel.discard(video_id)
            self._request(http, "cancel", "POST", f"/v1/videos/{video_id}/cancel", id=video_id)
        video = self._request(http, "poll", "GET", f"/v1/videos/{video_id}", id=video_id)
        if video is None or video.get("status") not in ENDED:
            return
        self.open.remove(video_id)
        self._request(http, "poll", "GET", f"/v1/videos/{video_id}", id=video_id)  # must not change
        if self.random.random() < DELETES:
            self._request(http, "delete", "DELETE", f"/v1/videos/{video_id}", id=video_id)

    def _request(self, http: httpx2.Client, what: str, method: str, path: str, **details: Any) -> dict[str, Any] | None:
        """Send a request and record the response. Returns the body of a 200, otherwise None."""
        request = {name: details.pop(name) for name in ("json", "headers") if name in details}
        headers = {**request.pop("headers", {}), "authorization": f"Bearer {self.all.api_keys[self.name]}"}
        began = time.monotonic()
        try:
            response = http.request(method, path, headers=headers, **request)
        except httpx2.HTTPError as e:
            self.all.history.record(self.name, what, **details, error=type(e).__name__, s=_since(began))
            return None
        found = response.json() if response.status_code == 200 else {}
        outcome = {"answer": response.status_code, "s": _since(began)}
        if found:
            outcome |= {
                "id": found["id"],
                "status": found.get("status"),
                "code": (found.get("error") or {}).get("code"),
            }
        self.all.history.record(self.name, what, **{**details, **outcome})
        return found or None


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
