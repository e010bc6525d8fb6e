"""Clients that submit, poll, cancel and delete by chance, and note every answer. They know the wire format only."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.faults.history import History

TIMEOUT_S = 8.0
OPEN_AT_ONCE = 4  # videos that a client waits for
AHEAD = 8  # videos asked for before the faults begin
STEPS = (5, 25)
PROMPTS = ("a red circle moving right on a teal background", "a blue square moving up on a black background")
CANCELS, DELETES, NAMES, REPEATS = 0.12, 0.1, 0.6, 0.1  # of all videos
ENDED = ("completed", "failed")


@dataclass
class Clients:
    """A context. Together they get `jobs` videos accepted, then only look after those."""

    url: str
    callback_url: str
    history: History
    jobs: int
    seed: int
    count: int = 4
    accepted: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    progress: Callable[[], float] = lambda: 1.0  # 0 to 1: the jobs are spread over the faults
    _clients: list[Client] = field(default_factory=list)
    _submitted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        for i in range(self.count):
            client = Client(f"client-{i}", self, random.Random(f"{self.seed}.{i}"))
            self._clients.append(client)
            self._threads.append(threading.Thread(target=client.live, name=client.name, daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    @property
    def have_all(self) -> bool:
        return len(self.accepted) >= self.jobs

    @property
    def watched(self) -> int:
        """Videos whose end their client has not seen."""
        return sum(len(client.open) for client in self._clients)

    def are_so_far(self, progress: float) -> bool:
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
    chance: random.Random
    open: list[str] = field(default_factory=list)
    doomed: set[str] = field(default_factory=set)  # will be cancelled, some time

    def live(self) -> None:
        with httpx2.Client(base_url=self.all.url, timeout=TIMEOUT_S, trust_env=False) as http:
            while not self.all.stopping.is_set():
                if len(self.open) < OPEN_AT_ONCE and self.all.may_submit():
                    self._submit(http)
                elif self.open:
                    self._look_after(http, self.chance.choice(self.open))
                self.all.stopping.wait(self.chance.uniform(0.05, 0.3))

    def _submit(self, http: httpx2.Client) -> None:
        """Until one is accepted. Without a name for the request every try may make another video."""
        key = uuid.UUID(int=self.chance.getrandbits(128)).hex if self.chance.random() < NAMES else None
        body = {
            "prompt": self.chance.choice(PROMPTS),
            "num_inference_steps": self.chance.randint(*STEPS),
            "seed": self.chance.randrange(2**32),
            "callback_url": self.all.callback_url,
        }
        headers = {"idempotency-key": key} if key else {}
        while not self.all.stopping.is_set():
            answer = self._ask(http, "submit", "POST", "/v1/videos", key=key, json=body, headers=headers)
            if answer is not None and "id" in answer:
                self.all.accepted.add(answer["id"])
                self.open.append(answer["id"])
                if self.chance.random() < CANCELS:
                    self.doomed.add(answer["id"])
                if key and self.chance.random() < REPEATS:  # as after an answer that got lost
                    self._ask(http, "submit", "POST", "/v1/videos", key=key, json=body, headers=headers)
                return
            self.all.stopping.wait(self.chance.uniform(0.2, 1.0))

    def _look_after(self, http: httpx2.Client, video_id: str) -> None:
        if video_id in self.doomed and self.chance.random() < 0.2:
            self.doomed.discard(video_id)
            self._ask(http, "cancel", "POST", f"/v1/videos/{video_id}/cancel", id=video_id)
        video = self._ask(http, "poll", "GET", f"/v1/videos/{video_id}", id=video_id)
        if video is None or video.get("status") not in ENDED:
            return
        self.open.remove(video_id)
        self._ask(http, "poll", "GET", f"/v1/videos/{video_id}", id=video_id)  # the same again
        if self.chance.random() < DELETES:
            self._ask(http, "delete", "DELETE", f"/v1/videos/{video_id}", id=video_id)

    def _ask(self, http: httpx2.Client, what: str, method: str, path: str, **details: Any) -> dict[str, Any] | None:
        """The body of an answer 200; None for everything else. What it is about goes into the history."""
        request = {name: details.pop(name) for name in ("json", "headers") if name in details}
        began = time.monotonic()
        try:
            response = http.request(method, path, **request)
        except httpx2.HTTPError as e:
            self.all.history.note(self.name, what, **details, error=type(e).__name__, s=_since(began))
            return None
        found = response.json() if response.status_code == 200 else {}
        told = {"answer": response.status_code, "s": _since(began)}
        if found:
            told |= {"id": found["id"], "status": found.get("status"), "code": (found.get("error") or {}).get("code")}
        self.all.history.note(self.name, what, **{**details, **told})
        return found or None


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
