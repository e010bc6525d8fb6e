"""The body of a webhook: the dispatcher sends it, the API documents it and sends test events."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from service.jobs.model import EventType, Generation, Job, JobError, JobState
from service.jobs.sampler_settings import SamplerSettings
from service.wire.video import TEMPORARY_URLS, Renderer, ResponseModel

# Prompts can have 32,000 characters each, while receivers expect at most 20 kB; a presigned URL expires in minutes.
OMITTED_FIELDS = {"prompt", "negative_prompt", *TEMPORARY_URLS}


class WebhookEvent(ResponseModel):
    """The body of a webhook. Events arrive at least once and in any order; drop duplicates by the webhook-id header."""

    id: str
    object: Literal["event"] = "event"
    created_at: int = Field(description="Unix seconds when the video ended")
    type: EventType
    timestamp: datetime
    data: dict[str, Any] = Field(
        description="The video as in GET /v1/videos/{video_id}, without prompt, negative_prompt and temporary URLs. "
        "A cancelled video has status failed and error.code cancelled."
    )


def payload(event_id: str, event_type: EventType, job: Job, renderer: Renderer) -> str:
    """The body as ASCII JSON, without OMITTED_FIELDS: they would make it too long, or be stale in a late attempt."""
    ended_at = job.completed_at or time.time()
    event = WebhookEvent(
        id=event_id,
        created_at=int(ended_at),
        type=event_type,
        timestamp=datetime.fromtimestamp(ended_at, UTC),
        data=renderer.video(job).model_dump(mode="json", exclude=OMITTED_FIELDS),
    )
    return json.dumps(event.model_dump(mode="json"), separators=(",", ":"))


def sample_job(event_type: EventType, model: str) -> Job:
    """An invented job that has ended, for testing an endpoint."""
    generation = Generation(
        model=model,
        prompt="",
        negative_prompt="",
        seed=0,
        width=512,
        height=512,
        num_frames=16,
        fps=8,
        num_inference_steps=20,
        guidance_scale=7.5,
        sampler=SamplerSettings(),
    )
    job = Job.new(generation).model_copy(update={"completed_at": time.time()})
    if event_type == "video.completed":
        return job.model_copy(update={"state": JobState.COMPLETED, "step": job.total_steps})
    error = JobError(code="internal_error", message="This is a test.")
    return job.model_copy(update={"state": JobState.FAILED, "error": error})
