"""What a client asks for, what is made of it, and the record of a job on its way. Knows nothing of Redis or HTTP."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from service.base import FrozenModel
from service.ids import new_job_id
from service.jobs.sampling import SamplerSettings, Spacing, network_calls

MAX_SEED = 2**63 - 1
LOCAL = "local"  # the owner of everything while authentication is off

# What webhooks tell. A cancelled video is told as failed, as everywhere on the wire.
EventType = Literal["video.completed", "video.failed"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)

Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not LEGAL[self]


LEGAL: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class Phase(StrEnum):
    """Stage of a running job, in this order."""

    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"
    UPLOADING = "uploading"


class Priority(StrEnum):
    """Queued videos of normal priority run before those of low priority."""

    NORMAL = "normal"
    LOW = "low"


class VideoRequest(FrozenModel):
    """A request for a video. Omitted fields take the defaults of the model."""

    prompt: str = Field(min_length=1, max_length=32_000, description="What the video shows")
    model: str | None = Field(default=None, description="A model id of GET /v1/models; default: the first one")
    seconds: float | None = Field(
        default=None, gt=0, le=3600, description="Duration; must equal num_frames / fps if both are given"
    )
    size: str | None = Field(default=None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT in pixels")
    width: int | None = Field(default=None, ge=1, description="Alternative to size, together with height")
    height: int | None = Field(default=None, ge=1, description="Alternative to size, together with width")
    num_frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    negative_prompt: str | None = Field(default=None, max_length=32_000)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Random if omitted; always returned")
    sampler: dict[str, Any] | None = Field(default=None, description="Overrides of the model's sampler settings")
    metadata: Metadata = Field(
        default_factory=dict, max_length=16, description="Returned unchanged; lists can be filtered by it"
    )
    user: str | None = Field(default=None, max_length=256)
    callback_url: str | None = Field(
        default=None,
        min_length=1,
        max_length=2048,
        description="Receives a signed webhook when the video has ended; alias: webhook_url",
    )
    callback_events: Annotated[tuple[EventType, ...], Field(min_length=1, max_length=2)] | None = Field(
        default=None, description="Event types sent to callback_url; default: all"
    )
    priority: Priority = Field(
        default=Priority.NORMAL, description="low: runs after all queued videos of normal priority"
    )
    start_timeout_s: float | None = Field(
        default=None, gt=0, le=7 * 86400, description="Fail if not started after this many seconds"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_alias(cls, given: Any) -> Any:
        """`webhook_url` is the name fal and ComfyUI use."""
        if not isinstance(given, dict) or "webhook_url" not in given:
            return cast(Any, given)
        fields = dict(cast(dict[str, Any], given))
        alias = fields.pop("webhook_url")
        if fields.setdefault("callback_url", alias) != alias:
            raise ValueError("callback_url and webhook_url are the same field, but differ")
        return fields

    @field_validator("callback_events", mode="before")
    @classmethod
    def _split_events(cls, value: object) -> object:
        """Forms send a list as a[]=.., as JSON text or joined by commas."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value.split(",")

    @model_validator(mode="after")
    def _events_need_a_url(self) -> Self:
        if self.callback_events is not None and self.callback_url is None:
            raise ValueError("callback_events is given without callback_url")
        return self

    @property
    def callback(self) -> Callback | None:
        if self.callback_url is None:
            return None
        return Callback(url=self.callback_url, events=self.callback_events or EVENT_TYPES)


class Callback(FrozenModel):
    """Whom one request wants told about its end, beside the owner's endpoints."""

    url: str
    events: tuple[EventType, ...] = EVENT_TYPES


class Generation(FrozenModel):
    """Everything that decides the pixels, fully resolved: the same Generation gives the same video."""

    model: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    sampler: SamplerSettings
    spacing: Spacing = Spacing()

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def total_steps(self) -> int:
        """What progress counts: FreeInit makes the whole run several times."""
        return self.num_inference_steps * (self.sampler.iterations if self.sampler.name == "freeinit" else 1)

    @property
    def network_calls(self) -> dict[str, int]:
        """{"image": n, "video": n}: how often each network is called."""
        return network_calls(self.sampler, self.num_inference_steps, self.spacing)

    @property
    def cost(self) -> int:
        """Network calls x pixels x frames: grows as the GPU time does."""
        return sum(self.network_calls.values()) * self.width * self.height * self.num_frames


class Output(FrozenModel):
    """Where the finished files lie in the storage; the sha256 (hex) and the size are the video's."""

    key: str
    thumbnail_key: str | None = None
    spritesheet_key: str | None = None
    size_bytes: int
    sha256: str
    media_type: str = "video/mp4"


class JobError(FrozenModel):
    code: str
    message: str


class Job(FrozenModel):
    """The record of one video. Times are unix seconds; `timings` are seconds per phase."""

    # The worker and the API may be of neighbouring versions while one of them is being replaced.
    model_config = ConfigDict(extra="ignore")

    id: str
    generation: Generation
    state: JobState = JobState.QUEUED
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    execution_id: str | None = None
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    phase: Phase | None = None
    cancel_requested: bool = False
    output: Output | None = None
    error: JobError | None = None
    timings: dict[str, float] = {}
    peak_memory_mb: float | None = None
    owner: str = LOCAL
    metadata: dict[str, str] = {}
    user: str | None = None
    callback: Callback | None = None
    priority: Priority = Priority.NORMAL
    start_by: float | None = None
    remixed_from: str | None = None

    @classmethod
    def new(cls, generation: Generation, **details: Any) -> Self:
        """A queued job; `details` are fields of the record: owner, metadata .."""
        return cls(
            id=new_job_id(),
            generation=generation,
            created_at=time.time(),
            total_steps=generation.total_steps,
            **details,
        )

    @classmethod
    def requested(cls, request: VideoRequest, generation: Generation, **details: Any) -> Self:
        """What the request says of the job, beside the pixels."""
        asked = {"metadata": request.metadata, "user": request.user, "callback": request.callback}
        job = cls.new(generation, priority=request.priority, **asked, **details)
        patience = request.start_timeout_s
        return job if patience is None else job.model_copy(update={"start_by": job.created_at + patience})

    def is_overdue(self, now: float) -> bool:
        """Nobody wants it any more: it still waits, later than the client said it may."""
        return self.state is JobState.QUEUED and self.start_by is not None and now > self.start_by

    @property
    def network_calls(self) -> dict[str, int]:
        """Of the whole job, known before it starts."""
        return self.generation.network_calls

    @property
    def progress(self) -> int:
        """Percent, counted from finished steps; 100 is said by a completed job only."""
        if self.state is JobState.COMPLETED:
            return 100
        return min(99, 100 * self.step // max(self.total_steps, 1))
