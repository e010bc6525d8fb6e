"""Examples of the OpenAPI description, made by the code that makes the real responses."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from service.api.schemas import (
    CancelledVideo,
    CancelledVideos,
    DeletedSession,
    DeletedVideo,
    Model,
    ModelList,
    QueueReport,
    Session,
    VideoEstimate,
    VideoList,
    model_queue,
)
from service.api.usage_schemas import DayUsage, UsageList
from service.api.webhook_schemas import (
    DeletedWebhookEndpoint,
    WebhookCallbackSecret,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Configuration
from service.catalog.registry import ModelRegistry
from service.jobs.model import EVENT_TYPES, Job, JobState, Output, Phase
from service.jobs.queue_and_waiting_time import QueueStats, WorkerStats
from service.jobs.request import VideoRequest
from service.jobs.usage import Usage
from service.scopes import DEFAULT_SCOPES
from service.settings import Settings
from service.storage import FileStorage
from service.webhooks.deliveries import Attempt, Delivery, State
from service.wire.video import Renderer, Video

REQUESTS: dict[str, dict[str, Any]] = {
    "PromptOnly": {"prompt": "a red circle moving left on a teal background"},
    "PromptAndSettings": {
        "prompt": "a red circle moving left on a teal background",
        "model": "demo",
        "size": "384x384",
        "seconds": "1",
        "seed": 7,
        "num_inference_steps": 16,
        "sampler": {"combination": "IV-IV", "interval": [0.3, 1.0]},
        "metadata": {"project": "shapes"},
    },
    "RemixPrompt": {"prompt": "a blue square moving up on a pink background"},
    "AnotherSeed": {"seed": -1},
    "CancelVideos": {"ids": ["video_019ab0d8a8007c3e8f5b2d6a4c1e9f70"]},
    "CancelQueuedVideos": {"status": "queued", "metadata": {"project": "shapes"}},
    "CreateWebhookEndpoint": {
        "name": "my app",
        "url": "https://app.example.com/hooks",
        "event_types": ["video.completed", "video.failed"],
    },
    "UpdateWebhookEndpoint": {"url": "https://app.example.com/hooks/2"},
    "RotateWebhookSecret": {"keep_old_secret_active_for_24_hours": True},
    "TestWebhookEndpoint": {"event_type": "video.completed"},
}

_CREATED_AT = 1795392000.0  # 2026-11-23
_STATES: dict[JobState, dict[str, Any]] = {
    JobState.QUEUED: {},
    JobState.RUNNING: {"started_at": _CREATED_AT + 2, "attempt": 1, "step": 5, "phase": Phase.SAMPLING},
    JobState.COMPLETED: {
        "started_at": _CREATED_AT + 2,
        "completed_at": _CREATED_AT + 11,
        "expires_at": _CREATED_AT + 11 + 7 * 86400,
        "attempt": 1,
        "step": 16,
        "output": Output(key="videos/x/y/video.mp4", size_bytes=41_000, sha256="0" * 64),
        "timings": {Phase.ENCODING: 0.02, Phase.SAMPLING: 7.9, Phase.DECODING: 0.5, Phase.UPLOADING: 0.1},
        "peak_memory_mb": 512.0,
    },
    JobState.CANCELLED: {"completed_at": _CREATED_AT + 1, "cancel_requested": True},
}


def examples() -> dict[str, Any]:
    """Example bodies by their name under `components/examples`."""
    bodies = _video_bodies() | _webhook_bodies()
    return REQUESTS | {"Status": {"status": "ok"}} | _events(bodies) | bodies


def _video_bodies() -> dict[str, Any]:
    queued, running, completed, cancelled = (_video(_job(state)) for state in _STATES)
    entry = _demo_model()
    model = Model.model_validate(entry)
    worker = WorkerStats(
        name="d41d8cd9",
        state="busy",
        last_seen=_CREATED_AT + 6,
        job=_job(JobState.RUNNING),
        configuration=Configuration.of(None).model_dump_json(),
    )
    stats = QueueStats(
        model="demo",
        queued=3,
        ahead=3,
        running=1,
        workers=(worker,),
        videos_per_hour=412.0,
        seconds_per_video=8.5,
    )
    return _dumped(
        VideoQueued=queued,
        VideoRemixed=queued.model_copy(update={"remixed_from_video_id": completed.id}),
        VideoInProgress=running,
        VideoCompleted=completed,
        VideoCancelled=cancelled,
        VideoList=VideoList.of([completed], has_more=True),
        DeletedVideo=DeletedVideo(id=completed.id),
        CancelledVideos=CancelledVideos(data=[CancelledVideo(id=cancelled.id, status="failed")], has_more=False),
        VideoEstimate=VideoEstimate.of(
            entry.resolve(VideoRequest.model_validate(REQUESTS["PromptAndSettings"])), 8.5, seed=7
        ),
        Session=Session(auth="keys", name="dashboard", scopes=sorted(DEFAULT_SCOPES), expires_at=int(_CREATED_AT) + 60),
        DeletedSession=DeletedSession(),
        Model=model,
        ModelList=ModelList(data=[model]),
        QueueReport=QueueReport(data=[model_queue(stats, None)]),
        UsageList=_usage(),
    )


def _usage() -> UsageList:
    usage = Usage(date(2025, 11, 24), "key_019ab0d8a8007c3e", 12, 1, 0, gpu_seconds=308.5, bytes=492_000)
    return UsageList.of([DayUsage.model_validate(usage)], has_more=False, gpu_seconds_per_day=3600)


def _webhook_bodies() -> dict[str, Any]:
    secret = "whsec_" + "A" * 43 + "="
    endpoint = _webhook_endpoint(secret)
    delivery = _webhook_delivery(endpoint)
    return _dumped(
        WebhookEndpoint=endpoint,
        WebhookEndpointWithSecret=WebhookEndpointWithSecret(**endpoint.model_dump(), signing_secret=secret),
        WebhookEndpointList=WebhookEndpointList.of([endpoint], has_more=False),
        DeletedWebhookEndpoint=DeletedWebhookEndpoint(id=endpoint.id),
        WebhookEndpointTest=WebhookEndpointTest(
            webhook_endpoint_id=endpoint.id,
            event_type="video.completed",
            status_code=204,
            webhook_delivery_id=delivery.id,
        ),
        WebhookEventTypeList=WebhookEventTypeList(data=list(EVENT_TYPES)),
        WebhookCallbackSecret=WebhookCallbackSecret(signing_secret=secret),
        WebhookDelivery=delivery,
        WebhookDeliveryList=WebhookDeliveryList.of([delivery], has_more=False),
    )


def _webhook_endpoint(secret: str) -> WebhookEndpoint:
    at = int(_CREATED_AT)
    return WebhookEndpoint(
        **REQUESTS["CreateWebhookEndpoint"],
        id="whe_019ab0d8a8007c3e",
        created_at=at,
        updated_at=at,
        signing_secret_hint=secret[-4:],
        enabled=True,
        disabled_at=None,
    )


def _webhook_delivery(endpoint: WebhookEndpoint) -> WebhookDelivery:
    delivery = Delivery(
        id="whd_019ab0d8a8007c3e",
        event_id="evt_019ab0d8a8007c3e",
        event_type="video.completed",
        video_id="video_019ab0d8a8007c3e8f5d2b1c9e4a7f60",
        owner="",
        endpoint_id=endpoint.id,
        body="",
        state=State.DELIVERED,
        created_at=_CREATED_AT,
        ended_at=_CREATED_AT + 1,
        attempts=1,
        log=(Attempt(at=_CREATED_AT + 1, status_code=204, error=None, duration_s=0.05),),
    )
    return WebhookDelivery.model_validate(delivery)


def _dumped(**bodies: BaseModel) -> dict[str, Any]:
    return {name: body.model_dump(mode="json") for name, body in bodies.items()}


def _events(bodies: dict[str, Any]) -> dict[str, Any]:
    video, deleted, queue = (json.dumps(bodies[name]) for name in ("VideoInProgress", "DeletedVideo", "QueueReport"))
    entry = "1795392006123-0"
    return {
        "ProgressEvent": {"event": "video.progress", "id": "running.1.5.sampling.-", "retry": 2000, "data": video},
        "VideoEvent": {"event": "video.progress", "id": entry, "data": video},
        "DeletedEvent": {"event": "video.deleted", "id": entry, "data": deleted},
        "QueueEvent": {"event": "queue", "data": queue},
        "ResetEvent": {"event": "reset", "id": entry, "data": "{}"},
    }


def _demo_model() -> ModelEntry:
    return ModelRegistry.load().get("demo")


def _job(state: JobState) -> Job:
    request = VideoRequest.model_validate(REQUESTS["PromptAndSettings"])
    job = request.to_job(_demo_model().resolve(request))
    known = {"id": "video_019ab0d8a8007c3e8f5d2b1c9e4a7f60", "created_at": _CREATED_AT, "state": state}
    return job.model_copy(update=known | _STATES[state])


def _video(job: Job) -> Video:
    renderer = Renderer(Settings.model_construct(), FileStorage(Path()))
    return renderer.video(job, queue_position=0 if job.state is JobState.QUEUED else None)
