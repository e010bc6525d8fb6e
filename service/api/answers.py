"""What goes out: a job's record as a Video, and the other objects of the API. Knows no HTTP."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.jobs import Job, JobState, Phase, Priority, SamplerSettings
from service.load import ModelLoad, WorkerLoad
from service.models import Range
from service.sampling import COMBINATIONS, USES
from service.settings import Settings
from service.storage import VideoStorage

Status = Literal["queued", "in_progress", "completed", "failed"]

# Clients loop until they see `completed` or `failed`: no other word may ever end a job (reference/api.md 1.3).
STATUS: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}

# vLLM-Omni's bench adds up the keys that end in _gen_ms.
STAGES: dict[str, str] = {
    Phase.ENCODING: "text_encode_gen_ms",
    Phase.SAMPLING: "denoise_gen_ms",
    Phase.DECODING: "vae_decode_gen_ms",
    Phase.UPLOADING: "upload_ms",
}


Variant = Literal["video", "thumbnail", "spritesheet"]

_FILE_ENDINGS = {"video/mp4": ".mp4", "image/webp": ".webp", "image/jpeg": ".jpg"}


class Answer(BaseModel):
    """Every key is always sent, so the contract calls every key required."""

    model_config = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)


class VideoError(Answer):
    code: str
    message: str


class Video(Answer):
    """One video on its way. Up to `error` as OpenAI's, every key always there; below it extensions."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: VideoError | None

    seed: int
    fps: int
    num_frames: int
    duration_s: float
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    sampler: SamplerSettings
    priority: Priority
    queue_position: int | None = Field(description="how many videos are ahead; null in lists and once it has started")
    phase: Phase | None
    step: int = Field(description="finished steps; `progress` is counted from them")
    total_steps: int
    network_calls: dict[str, int] | None = Field(description="how often each network is called in the whole run")
    attempt: int
    started_at: int | None
    cancelled_at: int | None
    queue_time_s: float | None
    inference_time_s: float | None
    stage_durations: dict[str, float] = Field(description="milliseconds")
    peak_memory_mb: float | None
    media_type: str | None
    url: str | None = Field(description="our own content address; only if the server knows its public one")
    download_url: str | None = Field(
        description="where anybody can fetch the film for a while, without a key; null if this server stores it itself"
    )
    download_url_expires_at: int | None
    metadata: dict[str, str]
    user: str | None


class VideoList(Answer):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(Answer):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(Answer):
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


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class QueueWorker(Answer):
    name: str
    state: str = Field(description="starting, idle, busy or suspended")
    last_seen_at: int | None
    video_id: str | None = Field(description="what it works on; null if that is the video of another key")
    phase: Phase | None
    step: int | None
    total_steps: int | None


class ModelQueue(Answer):
    model: str
    queued: int
    running: int
    workers: list[QueueWorker]
    videos_per_hour: float = Field(description="finished in the last hour")
    seconds_per_video: float | None = Field(description="of work, mean of the last ones")
    estimated_wait_s: float | None = Field(description="of a video asked for now; null without workers or experience")


class QueueReport(Answer):
    object: Literal["queue"] = "queue"
    data: list[ModelQueue]


def model_queue(load: ModelLoad, sees: str | None) -> ModelQueue:
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


def _worker(load: WorkerLoad, sees: str | None) -> QueueWorker:
    job = load.job
    return QueueWorker(
        name=load.name,
        state=load.state,
        last_seen_at=_seconds(load.last_seen),
        video_id=job.id if job and sees in (None, job.owner) else None,
        phase=job.phase if job else None,
        step=job.step if job else None,
        total_steps=job.total_steps if job else None,
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)


class Renderer:
    """Shows records as videos; knows what they have to know of this server."""

    def __init__(self, settings: Settings, storage: VideoStorage) -> None:
        self._storage = storage
        self._base = settings.public_base_url.rstrip("/") if settings.public_base_url else None
        self._presign_seconds = settings.presign_seconds

    def video(self, job: Job, *, queue_position: int | None = None) -> Video:
        wanted = job.generation
        download_url = self._download_url(job)
        return Video(
            id=job.id,
            model=wanted.model,
            status=STATUS[job.state],
            progress=job.progress,
            created_at=int(job.created_at),
            completed_at=_seconds(job.completed_at),
            expires_at=_seconds(job.expires_at),
            prompt=wanted.prompt,
            size=f"{wanted.width}x{wanted.height}",
            seconds=f"{wanted.seconds:g}",
            remixed_from_video_id=job.remixed_from,
            error=_error(job),
            seed=wanted.seed,
            fps=wanted.fps,
            num_frames=wanted.num_frames,
            duration_s=wanted.seconds,
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            negative_prompt=wanted.negative_prompt,
            sampler=wanted.sampler,
            priority=job.priority,
            queue_position=queue_position,
            phase=job.phase,
            step=job.step,
            total_steps=job.total_steps,
            network_calls=getattr(job, "network_calls", None),
            attempt=job.attempt,
            started_at=_seconds(job.started_at),
            cancelled_at=_seconds(job.completed_at) if job.state is JobState.CANCELLED else None,
            queue_time_s=None if job.started_at is None else round(job.started_at - job.created_at, 3),
            inference_time_s=round(sum(job.timings.values()), 3) if job.timings else None,
            stage_durations={STAGES.get(name, f"{name}_ms"): round(1000 * s, 3) for name, s in job.timings.items()},
            peak_memory_mb=job.peak_memory_mb,
            media_type=job.output.media_type if job.output else None,
            url=f"{self._base}/v1/videos/{job.id}/content" if job.output and self._base else None,
            download_url=download_url,
            download_url_expires_at=int(time.time()) + self._presign_seconds if download_url else None,
            metadata=job.metadata,
            user=job.user,
        )

    def _download_url(self, job: Job) -> str | None:
        if job.output is None:
            return None
        key, media_type = job.output.key, job.output.media_type
        return self._storage.url(key, filename=file_name(job, "video", media_type), media_type=media_type)


def file_name(job: Job, variant: Variant, media_type: str) -> str:
    return f"{job.id}{'' if variant == 'video' else f'-{variant}'}{_FILE_ENDINGS.get(media_type, '')}"


def _error(job: Job) -> VideoError | None:
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The video was cancelled.")
    return VideoError(code=job.error.code, message=job.error.message) if job.error else None


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
