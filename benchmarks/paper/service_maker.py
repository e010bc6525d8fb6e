"""Makes clips through a running service: jobs like any other, several of them waiting, so that all its GPUs work."""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.arms import Fields
from benchmarks.paper.clips import LOSSLESS, MP4
from benchmarks.paper.makers import Batch, Made, Order, Save
from benchmarks.paper.prompts import Prompt
from service.cli.client import VideoClient, VideoFailedError
from service.errors import InvalidParameter

IN_FLIGHT = 16  # jobs that wait or run
ATTEMPTS = 3  # per clip and run of the command


class ServiceMaker:
    """A context: it keeps connections open.

    Args:
        url, api_key: of the service.
        model: id on that service.
        sample_prompt: with which the costs of a request are asked.
    """

    weights: str | None = None  # the API does not report them

    def __init__(self, url: str, model: str, *, api_key: str | None, benchmark: str, sample_prompt: str) -> None:
        self._client = VideoClient(url, api_key=api_key)
        self.model, self.made_by = model, url
        self._benchmark, self._sample = benchmark, {"prompt": sample_prompt, "model": model}

    def __enter__(self) -> ServiceMaker:
        self._client.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._client.__exit__(*reason)

    def own_settings(self) -> Mapping[str, object]:
        return self._client.estimate({**self._sample, "sampler": {"name": "iv-mixed"}})["sampler"]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """With the service's own checks, before the first job; what only a tokenizer knows fails later."""
        for prompt in prompts:
            self._client.estimate({**self._sample, "prompt": prompt.text})

    def network_calls(self, fields: Fields) -> Mapping[str, int]:
        return self._client.estimate({**fields, **self._sample})["network_calls"]

    def make(self, batches: Iterable[Batch], suffixes: frozenset[str], save: Save) -> None:
        """Raises InvalidParameter, RequestError, or VideoFailedError after some attempts; finished clips are kept."""
        if LOSSLESS in suffixes:
            raise InvalidParameter("lossless", "--lossless: a service stores mp4 files only; use --via local for it.")
        waiting: deque[tuple[Order, str]] = deque()
        for order in (order for batch in batches for order in batch.orders if order.key in batch.missing):
            if len(waiting) >= IN_FLIGHT:
                self._finish(*waiting.popleft(), save)
            waiting.append((order, self._create(order)))
        while waiting:
            self._finish(*waiting.popleft(), save)

    def _create(self, order: Order, attempt: int = 0) -> str:
        """The id of the job: after a restart that of the job that the same order had before."""
        key = order.key
        name = "\n".join((self._benchmark, self.model, order.arm.digest, key.arm, key.stem, order.prompt, str(attempt)))
        metadata = {"bench": self._benchmark, "arm": key.arm, "prompt_id": key.prompt_id, "repeat": str(key.repeat)}
        body: dict[str, Any] = {**order.request, "model": self.model, "metadata": metadata}
        return self._client.create(body, idempotency_key=hashlib.sha256(name.encode()).hexdigest())["id"]

    def _finish(self, order: Order, video_id: str, save: Save) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                video = self._client.wait(video_id, lambda _video: None)
                break
            except VideoFailedError:
                if attempt == ATTEMPTS:
                    raise
                video_id = self._create(order, attempt)
        else:
            raise AssertionError("unreachable")
        with tempfile.TemporaryDirectory(prefix="ivmix-bench-") as folder:
            file = Path(folder) / "a.mp4"
            self._client.download(video_id, file)
            content = file.read_bytes()
        save(order, Made({MP4: content}, float(video.get("inference_time_s") or 0.0), f"service {video['model']}"))
