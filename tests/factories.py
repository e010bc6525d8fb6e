"""Factories for test values: pass the fields that matter, the others get defaults."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rq import Queue

from service.jobs.model import Generation, Job, Output, Phase
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.store import JobStore
from service.storage import sha256_of
from service.webhook_dispatcher.attempt import AttemptRunner
from service.webhook_dispatcher.fan_out import FanOut
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.wire.video import Renderer
from service.wiring import Services

PROMPT = "a red circle moving left on a teal background"


def make_request(**over: Any) -> VideoRequest:
    return VideoRequest.model_validate({"prompt": PROMPT} | over)


def make_generation(**over: Any) -> Generation:
    given = {
        "model": "demo",
        "prompt": PROMPT,
        "negative_prompt": "low quality",
        "seed": 7,
        "width": 384,
        "height": 384,
        "num_frames": 8,
        "fps": 8,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "sampler": SamplerSettings(),
    }
    return Generation.model_validate(given | over)


def make_job(**over: Any) -> Job:
    return Job.new(make_generation()).model_copy(update=over)


def create_job(store: JobStore, queue: Queue, **over: Any) -> Job:
    return store.create(make_job(**over), queue)


def make_output(**over: Any) -> Output:
    given = {"key": "videos/x/e/video.mp4", "size_bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    return Output.model_validate(given | over)


def complete_job(store: JobStore, job_id: str, execution_id: str) -> bool:
    return store.complete(job_id, execution_id, make_output(), {Phase.SAMPLING: 1.5}, 12.5)


def finish(services: Services, job_id: str, content: bytes, *, scratch: Path) -> None:
    """Complete a queued job as a worker would: store the files, then update the record."""
    services.store.start(job_id, "execution")
    video = scratch / "video.mp4"
    video.write_bytes(content)
    thumbnail = scratch / "thumbnail.webp"
    thumbnail.write_bytes(b"thumbnail of " + content)
    prefix = f"videos/{job_id}/execution"
    for file, media_type in ((video, "video/mp4"), (thumbnail, "image/webp")):
        services.storage.put(file, key=f"{prefix}/{file.name}", media_type=media_type, sha256=sha256_of(file))
    output = make_output(
        key=f"{prefix}/{video.name}",
        thumbnail_key=f"{prefix}/{thumbnail.name}",
        size_bytes=len(content),
        sha256=sha256_of(video),
    )
    timings = {Phase.ENCODING: 0.25, Phase.SAMPLING: 1.5, Phase.DECODING: 0.25, Phase.UPLOADING: 60.0}
    assert services.store.complete(job_id, "execution", output, timings, 512.0)


def deliver_webhooks(services: Services, runner: AttemptRunner | None = None) -> None:
    """Do what a dispatcher does, in this thread: empty the outbox, then make all attempts that are due."""
    while FanOut(services.webhooks, Renderer(services.settings, services.storage)).run_once():
        pass
    attempt_due_webhooks(services, runner)


def attempt_due_webhooks(services: Services, runner: AttemptRunner | None = None) -> None:
    runner = runner or AttemptRunner(services.settings, services.webhooks, DispatcherMetrics())
    while claimed := services.webhooks.deliveries.claim(8):
        for claim in claimed:
            runner.run(claim.delivery_id, claim.attempts_made)
