"""Response bodies of the API other than the video object itself. No HTTP here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.catalog.model_entry import Range
from service.jobs.model import Phase
from service.jobs.queue_stats import QueueStats, WorkerStats
from service.jobs.sampling import COMBINATIONS, USES, SamplerSettings
from service.wire.video import ResponseModel, Video, unix_seconds


class VideoList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(ResponseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(ResponseModel):
    """OpenAI's four fields, then what the model can do; the defaults are those of a request that names nothing."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ivmix"
    description: str
    family: str
    sizes: list[str] = Field(description="the first one is the default")
    num_frames: Range
    fps: Range
    num_inference_steps: Range
    guidance_scale: Range
    negative_prompt: str
    sampler: SamplerSettings
    samplers: list[str] = Field(default=list(USES), description="what `sampler.name` may be")
    combinations: list[str] = Field(
        default=list(COMBINATIONS), description="what `sampler.combination` may be; with R only if goback_first"
    )
    max_cost: float | None = Field(description="most network calls x pixels x frames of one video; null: no bound")
    max_prompt_length: int = Field(description="characters")
    max_prompt_tokens: int | None = Field(
        description="what the text encoders read; a longer prompt is refused, not cut"
    )
    can_draw: str | None


class ModelList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class QueueWorker(ResponseModel):
    name: str
    state: str = Field(description="starting, idle, busy or suspended")
    last_seen_at: int | None
    video_id: str | None = Field(description="what it works on; null if that is the video of another key")
    phase: Phase | None
    step: int | None
    total_steps: int | None


class ModelQueue(ResponseModel):
    model: str
    queued: int
    running: int
    workers: list[QueueWorker]
    videos_per_hour: float = Field(description="finished in the last hour")
    seconds_per_video: float | None = Field(description="of work, mean of the last ones")
    estimated_wait_s: float | None = Field(description="of a video asked for now; null without workers or experience")


class QueueReport(ResponseModel):
    object: Literal["queue"] = "queue"
    data: list[ModelQueue]


def model_queue(load: QueueStats, sees: str | None) -> ModelQueue:
    """`sees` is the owner whose videos may be named; None for all."""
    return ModelQueue(
        model=load.model,
        queued=load.queued,
        running=load.running,
        workers=[_worker(worker, sees) for worker in load.workers],
        videos_per_hour=load.videos_per_hour,
        seconds_per_video=_rounded(load.seconds_per_video),
        estimated_wait_s=_rounded(load.estimated_wait_s),
    )


def _worker(load: WorkerStats, sees: str | None) -> QueueWorker:
    job = load.job
    return QueueWorker(
        name=load.name,
        state=load.state,
        last_seen_at=unix_seconds(load.last_seen),
        video_id=job.id if job and sees in (None, job.owner) else None,
        phase=job.phase if job else None,
        step=job.step if job else None,
        total_steps=job.total_steps if job else None,
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)
