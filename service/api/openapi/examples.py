"""Examples for the contract, made by the code that makes the real answers, so they cannot be wrong for long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.api.schemas import DeletedVideo, Model, ModelList, QueueReport, VideoList, model_queue
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.jobs.model import Job, JobState, Output, Phase, VideoRequest
from service.jobs.queue_stats import QueueStats, WorkerStats
from service.settings import Settings
from service.storage import FileStorage
from service.wire.video import Renderer

PROMPT = "a red circle moving left on a teal background"

REQUESTS: dict[str, dict[str, Any]] = {
    "prompt only": {"prompt": PROMPT},
    "with settings": {
        "prompt": PROMPT,
        "model": "demo",
        "size": "384x384",
        "seconds": "1",
        "seed": 7,
        "num_inference_steps": 16,
        "sampler": {"combination": "IV-IV", "interval": [0.3, 1.0]},
        "metadata": {"project": "shapes"},
    },
}
REMIXES: dict[str, dict[str, Any]] = {"another prompt": {"prompt": "a blue square moving up on a pink background"}}

_CREATED_AT = 1795392000.0  # 2026-11-23


def answers() -> dict[str, Any]:
    """Example bodies by operation id."""
    queued, running, completed, failed = (_video(_job(state)) for state in _STATES)
    entry = _demo()
    running_job = _job(JobState.RUNNING)
    at_work = WorkerStats(name="d41d8cd9", state="busy", last_seen=_CREATED_AT + 6, job=running_job)
    load = QueueStats(
        model="demo", queued=3, running=1, workers=(at_work,), videos_per_hour=412.0, seconds_per_video=8.5
    )
    return {
        "create_video": {"queued": queued},
        "remix_video": {"queued": queued | {"remixed_from_video_id": completed["id"]}},
        "retrieve_video": {"in progress": running, "completed": completed, "failed": failed},
        "cancel_video": {"failed": failed},
        "list_videos": {
            "a page": VideoList.model_validate(
                {"data": [completed], "first_id": completed["id"], "last_id": completed["id"], "has_more": True}
            ).model_dump(mode="json")
        },
        "delete_video": {"deleted": DeletedVideo(id=completed["id"]).model_dump(mode="json")},
        "list_models": {"the demo": ModelList(data=[Model.model_validate(entry)]).model_dump(mode="json")},
        "retrieve_model": {"the demo": Model.model_validate(entry).model_dump(mode="json")},
        "report_queue": {"busy": QueueReport(data=[model_queue(load, None)]).model_dump(mode="json")},
        "follow_video": {
            "progress": {
                "event": "video.progress",
                "id": "running.1.5.sampling.-",
                "retry": 2000,
                "data": json.dumps(running),
            }
        },
        "live": {"well": {"status": "ok"}},
        "ready": {"well": {"status": "ok"}},
    }


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


def _demo() -> ModelEntry:
    return ModelRegistry.load().get("demo")


def _job(state: JobState) -> Job:
    request = VideoRequest.model_validate(REQUESTS["with settings"])
    job = Job.requested(request, _demo().resolve(request))
    known = {"id": "video_019ab0d8a8007c3e8f5d2b1c9e4a7f60", "created_at": _CREATED_AT, "state": state}
    return job.model_copy(update=known | _STATES[state])


def _video(job: Job) -> dict[str, Any]:
    position = 0 if job.state is JobState.QUEUED else None
    shown = Renderer(Settings.model_construct(), FileStorage(Path())).video(job, queue_position=position)
    return shown.model_dump(mode="json")
