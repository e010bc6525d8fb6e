"""What a client asks for, what is made of it, and the record of a job on its way. Knows nothing of Redis or HTTP."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from threading import Lock
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field

from service.frozen import Frozen
from service.sampling import SamplerSettings, Spacing, network_calls

MAX_SEED = 2**63 - 1

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
    """What a running job is busy with, in this order."""

    ENCODING = "encoding"
    SAMPLING = "sampling"
    DECODING = "decoding"
    UPLOADING = "uploading"


class VideoRequest(Frozen):
    """What a client may ask for. What is left out is filled in by the model (`ModelEntry.resolve`)."""

    prompt: str = Field(min_length=1, max_length=32_000, description="what the video shows")
    model: str | None = Field(default=None, description="a model id of GET /v1/models; the first one if left out")
    seconds: float | None = Field(default=None, gt=0, le=3600, description="length; must agree with num_frames / fps")
    size: str | None = Field(default=None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT in pixels")
    width: int | None = Field(default=None, ge=1, description="alternative to size, with height")
    height: int | None = Field(default=None, ge=1, description="alternative to size, with width")
    num_frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    negative_prompt: str | None = Field(default=None, max_length=32_000)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="random if left out; always returned")
    sampler: dict[str, Any] | None = Field(default=None, description="changes to the model's sampler settings")
    metadata: Metadata = Field(default_factory=dict, max_length=16, description="returned as given")
    user: str | None = Field(default=None, max_length=256)


class Generation(Frozen):
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


class Output(Frozen):
    """Where the finished files lie in the storage; the sha256 (hex) and the size are the video's."""

    key: str
    thumbnail_key: str | None = None
    spritesheet_key: str | None = None
    size_bytes: int
    sha256: str
    media_type: str = "video/mp4"


class JobError(Frozen):
    code: str
    message: str


class Job(Frozen):
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
    metadata: dict[str, str] = {}
    user: str | None = None

    @classmethod
    def new(cls, generation: Generation, *, metadata: dict[str, str] | None = None, user: str | None = None) -> Self:
        return cls(
            id=new_job_id(),
            generation=generation,
            created_at=time.time(),
            total_steps=generation.total_steps,
            metadata=metadata or {},
            user=user,
        )

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


_last_id = 0
_id_lock = Lock()


def new_job_id() -> str:
    """video_ + UUIDv7 in hex (RFC 9562 6.2 method 2): ids sort by age, within this process strictly."""
    global _last_id
    fresh = (time.time_ns() // 1_000_000) << 74 | secrets.randbits(74)  # 48 bits of milliseconds, 74 of chance
    with _id_lock:
        _last_id = max(fresh, _last_id + 1 + secrets.randbits(32))
        millis_and_a, b = divmod(_last_id, 1 << 62)
    millis, a = divmod(millis_and_a, 1 << 12)
    return f"video_{millis << 80 | 0x7 << 76 | a << 64 | 0b10 << 62 | b:032x}"
