"""The Video object: a job as the API and webhooks show it."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation, Job, JobState, Phase, Priority, inference_seconds
from service.jobs.reference import ReferenceUse
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.step_cache import StepCache
from service.settings import Settings
from service.signatures import Signer
from service.storage import VideoStorage
from service.wire.file_urls import FileUrls, Variant

Status = Literal["queued", "in_progress", "completed", "failed"]

# OpenAI clients poll until `completed` or `failed`, so a cancelled job must be `failed`.
STATUS: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}

# vLLM-Omni's benchmark sums the keys that end in _gen_ms.
STAGES: dict[str, str] = {
    Phase.ENCODING: "text_encode_gen_ms",
    Phase.SAMPLING: "denoise_gen_ms",
    Phase.DECODING: "vae_decode_gen_ms",
    Phase.UPLOADING: "upload_ms",
}

_FILE_ENDINGS = {"video/mp4": ".mp4", "image/webp": ".webp", "image/jpeg": ".jpg"}


class ResponseModel(BaseModel):
    """Every key is always sent, therefore every key is required in the OpenAPI description."""

    model_config = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)


class VideoError(ResponseModel):
    code: str
    message: str


class VideoReference(ResponseModel):
    """The picture or clip that the video starts from."""

    type: Literal["image", "video"]
    use: ReferenceUse
    strength: float | None = Field(description="null with `first_frame`")
    conditioning_scale: float | None = Field(description="null with `start`")
    num_frames: int | None = Field(description="Of the stored file, as the next two")
    width: int | None
    height: int | None

    @classmethod
    def of(cls, generation: Generation) -> Self | None:
        reference = generation.reference
        if reference is None:
            return None
        is_start = reference.use == "start"
        return cls(
            type="image" if reference.media_type == "image/png" else "video",
            use=reference.use,
            strength=reference.strength if is_start else None,
            conditioning_scale=None if is_start else reference.conditioning_scale,
            num_frames=reference.num_frames,
            width=reference.width,
            height=reference.height,
        )


class Video(ResponseModel):
    """OpenAI's Video object up to `error`, then extensions. All keys but `video_ids` and `input_reference` are always
    present."""

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
    clip_skip: int
    negative_prompt: str
    sampler: SamplerSettings
    cache: StepCache | None = Field(description="That which the request chose; null: none")
    approximations: list[str] = Field(
        description="What changes the networks' answers by more than rounding to their dtype: the name of `cache`, and "
        "`float8` or `float8-weights` of a model with such weights. Empty: nothing"
    )
    loras: list[LoraUse] = Field(description="Those that the request chose")
    input_reference: VideoReference | None = Field(
        default=None, exclude_if=lambda reference: reference is None, description="Left out if there is none"
    )
    priority: Priority
    queue_position: int | None = Field(
        description="Number of videos ahead; null once started, and in lists unless `status` is `queued` alone"
    )
    phase: Phase | None
    step: int = Field(description="Completed steps, from which `progress` is computed")
    total_steps: int
    network_calls: dict[str, int] | None = Field(description="Calls of each network in the whole run")
    experimental: bool = Field(description="Whether nothing shows yet that this sampler helps with this model")
    attempt: int
    started_at: int | None
    cancelled_at: int | None
    queue_time_s: float | None
    inference_time_s: float | None = Field(description="Encoding, sampling and decoding, without the upload")
    stage_durations: dict[str, float] = Field(description="Milliseconds per stage")
    peak_memory_mb: float | None
    media_type: str | None
    url: str | None = Field(description="URL of `/content`; null unless the server has a public base URL")
    download_url: str | None = Field(
        description="Temporary URL that needs no API key, for `<video>` too. If the server does not know its public "
        "URL and stores files itself, a path on it"
    )
    download_url_expires_at: int | None = Field(description="Also for the next two")
    thumbnail_url: str | None = Field(description="Temporary URL of a WebP picture; null if the video has none")
    spritesheet_url: str | None = Field(description="Temporary URL of a JPEG of all frames; null if it has none")
    preview_url: str | None = Field(
        description="Temporary URL of a small WebP, animated as a rule, that shows the video while it is sampled. Each "
        "new one has another URL; null if there is none"
    )
    metadata: dict[str, str]
    user: str | None
    video_ids: list[str] | None = Field(
        default=None,
        exclude_if=lambda ids: ids is None,
        description="Only in the answer to a request with `num_videos` above 1: all its videos, this one first",
    )


GENERATION_FIELDS = sorted(Video.model_fields.keys() & Generation.model_fields.keys())


@dataclass(frozen=True)
class TemporaryUrls:
    """Fields of the Video: URLs that need no API key."""

    download_url: str | None = None
    download_url_expires_at: int | None = None
    thumbnail_url: str | None = None
    spritesheet_url: str | None = None
    preview_url: str | None = None


TEMPORARY_URLS = {field.name for field in fields(TemporaryUrls)}


class Renderer:
    """Converts jobs to videos, with the URLs of this server."""

    def __init__(self, settings: Settings, storage: VideoStorage, signer: Signer | None = None) -> None:
        """Without a signer there are no URLs of files on this server."""
        self._storage = storage
        self._files = FileUrls.of(settings, signer) if signer else None
        self._base = settings.client_base_url
        self._presign_seconds = settings.presign_seconds

    def video(self, job: Job, *, queue_position: int | None = None) -> Video:
        generation = job.generation
        return Video(
            **{name: getattr(generation, name) for name in GENERATION_FIELDS},
            id=job.id,
            status=STATUS[job.state],
            progress=job.progress,
            created_at=int(job.created_at),
            completed_at=unix_seconds(job.completed_at),
            expires_at=unix_seconds(job.expires_at),
            size=f"{generation.width}x{generation.height}",
            seconds=f"{generation.seconds:g}",
            remixed_from_video_id=job.remixed_from,
            error=_error(job),
            duration_s=generation.seconds,
            input_reference=VideoReference.of(generation),
            priority=job.priority,
            queue_position=queue_position,
            phase=job.phase,
            step=job.step,
            total_steps=job.total_steps,
            network_calls=getattr(job, "network_calls", None),
            approximations=generation.approximations,
            experimental=generation.is_experimental,
            attempt=job.attempt,
            started_at=unix_seconds(job.started_at),
            cancelled_at=unix_seconds(job.completed_at) if job.state is JobState.CANCELLED else None,
            queue_time_s=None if job.started_at is None else round(job.started_at - job.created_at, 3),
            inference_time_s=round(inference_seconds(job.timings), 3) if job.timings else None,
            stage_durations={STAGES.get(name, f"{name}_ms"): round(1000 * s, 3) for name, s in job.timings.items()},
            peak_memory_mb=job.peak_memory_mb,
            media_type=job.output.media_type if job.output else None,
            url=f"{self._base}/v1/videos/{job.id}/content" if job.output and self._base else None,
            **vars(self._temporary_urls(job)),
            metadata=job.metadata,
            user=job.user,
        )

    def _temporary_urls(self, job: Job) -> TemporaryUrls:
        output, files = job.output, self._files
        if output is None:
            return TemporaryUrls(preview_url=self._preview_url(job))
        filename = file_name(job, "video", output.media_type)
        video = self._storage.url(output.key, filename=filename, media_type=output.media_type)
        until = int(time.time()) + self._presign_seconds if video else None
        if files is None:
            return TemporaryUrls(video, until)
        expires = files.expires_at()
        return TemporaryUrls(
            video or files.url(job.id, "video", expires),
            until or expires,
            files.url(job.id, "thumbnail", expires) if output.thumbnail_key else None,
            files.url(job.id, "spritesheet", expires) if output.spritesheet_key else None,
        )

    def _preview_url(self, job: Job) -> str | None:
        is_sampled = job.state is JobState.RUNNING and job.phase is Phase.SAMPLING
        if self._files is None or job.preview_at is None or not is_sampled:
            return None
        version = round(1000 * job.preview_at)
        return self._files.url(job.id, "preview", self._files.expires_at(), version)


def file_name(job: Job, variant: Variant, media_type: str) -> str:
    return f"{job.id}{'' if variant == 'video' else f'-{variant}'}{_FILE_ENDINGS.get(media_type, '')}"


def _error(job: Job) -> VideoError | None:
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The video was cancelled.")
    return VideoError(code=job.error.code, message=job.error.message) if job.error else None


def unix_seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
