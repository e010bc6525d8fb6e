"""The record of a job: what to generate, its state, and its result. Independent of Redis and HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field

from service.frozen_model import FrozenModel
from service.ids import created_at, new_job_id
from service.jobs.context_windows import ContextWindows
from service.jobs.denoiser_calls import enlarged_calls, network_calls
from service.jobs.lora_choice import LoraUse
from service.jobs.reference import Reference
from service.jobs.released_loops import Family
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.step_cache import DeepCache, StepCache
from service.jobs.timestep_spacing import AnySpacing, FlowSpacing, Spacing

LOCAL = "local"  # owner of everything while authentication is off

EventType = Literal["video.completed", "video.failed"]  # a cancelled video is reported as failed, as in the API
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


Quantise = Literal["float8", "float8-weights"]

# Bounds that every stored value has; a record beyond them is damaged.
Timestamp = Annotated[float, Field(ge=0, le=253_402_300_799)]  # unix seconds, until the year 9999
Count = Annotated[int, Field(ge=0, le=2**53)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Size = Annotated[int, Field(ge=1, le=2**31)]


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not ALLOWED_TRANSITIONS[self]


ALLOWED_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
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


def inference_seconds(timings: Mapping[str, float]) -> float:
    """Of all phases but the upload: it may wait for the storage, and the networks work on the next job meanwhile."""
    return sum(seconds for phase, seconds in timings.items() if phase != Phase.UPLOADING)


class Priority(StrEnum):
    """Queued videos of normal priority run before those of low priority."""

    NORMAL = "normal"
    LOW = "low"


class Callback(FrozenModel):
    """Webhook receiver of a single request, in addition to the owner's endpoints."""

    url: str
    events: tuple[EventType, ...] = EVENT_TYPES


class Generation(FrozenModel):
    """Everything that determines the pixels, with all defaults applied: equal Generations give equal videos."""

    model: str  #: id of the model in the catalog
    prompt: str  #: text that the video shows
    negative_prompt: str  #: text that guidance steers away from
    seed: int  #: seed of all noise of the run, 0 to 2**63 - 1
    width: Size  #: width of the video in pixels
    height: Size  #: height of the video in pixels
    num_frames: Size  #: length of the video in frames
    fps: Size  #: frames per second
    num_inference_steps: Steps  #: denoising steps of one sampling run
    guidance_scale: float  #: classifier-free guidance scale of the denoising steps
    sampler: SamplerSettings  #: sampler and its settings
    spacing: AnySpacing = Spacing()  #: noise levels that the denoising steps visit
    official_family: Family | None = Field(default=None, exclude_if=lambda family: family is None)
    #: family whose released code runs; None unless the sampler is `official`
    reference: Reference | None = Field(default=None, exclude_if=lambda reference: reference is None)
    #: picture or clip that the video starts from
    loras: tuple[LoraUse, ...] = Field(default=(), exclude_if=lambda loras: not loras)
    #: LoRAs that the request chose, in addition to those that are merged into the model for every clip
    clip_skip: Count = Field(default=0, exclude_if=lambda skipped: not skipped)
    #: last layers of the text encoders that the prompt skips; 0: none
    prompt_chunks: Size = Field(default=1, exclude_if=lambda chunks: chunks == 1)
    #: windows of a text encoder that a text may fill
    prompt_weighting: bool = Field(default=False, exclude_if=lambda weighting: not weighting)
    #: whether brackets in the texts weight words
    context_windows: ContextWindows | None = Field(default=None, exclude_if=lambda windows: windows is None)
    #: windows through which the motion modules see the clip; None: as a whole
    cache: StepCache | None = Field(default=None, exclude_if=lambda cache: cache is None)
    #: what calls of the networks reuse of earlier ones; None: nothing
    quantise: Quantise | None = Field(default=None, exclude_if=lambda quantise: quantise is None)
    #: how the model's weights are rounded; None: not at all

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def is_experimental(self) -> bool:
        """Whether nothing shows yet that the sampler helps: `fused`, and mixing on a flow-matching model."""
        is_mixed_flow = self.sampler.name == "iv-mixed" and isinstance(self.spacing, FlowSpacing)
        return is_mixed_flow or self.sampler.name == "fused"

    @property
    def approximations(self) -> list[str]:
        """What changes the networks' answers by more than rounding to their dtype; empty: nothing."""
        return [name for name in (self.cache and self.cache.name, self.quantise) if name is not None]

    def can_resume_after(self, steps: int) -> bool:
        """Whether latents and memory after so many steps are all that the rest of the run needs: a run resumes only
        where its cache would be empty."""
        if self.cache is None or steps == self.total_steps:
            return True
        of_run = steps % self.num_inference_steps  # FreeInit has several
        return isinstance(self.cache, DeepCache) and of_run % self.cache.steps == 0

    @property
    def total_steps(self) -> int:
        """Steps that run, which the progress counts; FreeInit repeats the whole run."""
        steps = self.num_inference_steps - self.first_step
        return steps * (self.sampler.iterations if self.sampler.name == "freeinit" else 1)

    @property
    def first_step(self) -> int:
        """Steps that are left out, because the run begins at a reference and not at noise."""
        return self.reference.first_step(self.num_inference_steps) if self.reference else 0

    @property
    def keeps_first_frame(self) -> bool:
        """Whether a SparseCtrl network keeps the reference as the first frame."""
        return self.reference is not None and self.reference.use == "first_frame"

    @property
    def network_calls(self) -> dict[str, int]:
        """Calls of each network in the whole job: {"image": n, "video": n}."""
        family = self.official_family or "animatediff"
        return network_calls(self.sampler, self.num_inference_steps, self.spacing, family, self.first_step)

    @property
    def cost(self) -> int:
        """Network calls x pixels x frames, which is proportional to the GPU time."""
        enlarged = enlarged_calls(self.sampler, self.num_inference_steps, self.first_step)
        calls = sum(self.network_calls.values()) + enlarged * ((self.sampler.enlarge or 1) ** 2 - 1)
        return round(calls * self.width * self.height * self.num_frames)


class Output(FrozenModel):
    """The stored files of a completed video."""

    key: Annotated[str, Field(min_length=1)]  #: storage key of the video
    thumbnail_key: str | None = None  #: storage key of the thumbnail
    spritesheet_key: str | None = None  #: storage key of the sprite sheet
    size_bytes: Count  #: size of the video in bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  #: SHA-256 of the video in hex
    media_type: Annotated[str, Field(pattern=r"^[\w.+-]+/[\w.+-]+$")] = "video/mp4"  #: media type of the video


class JobError(FrozenModel):
    """Why a job failed: a stable code for programs and one sentence for the user."""

    code: str
    message: str


class Job(FrozenModel):
    """The record of one video. All times are unix seconds."""

    # During an upgrade, workers and API of neighbouring versions read each other's records.
    model_config = ConfigDict(extra="ignore")

    id: str  #: public id, `video_` and 32 hex digits; ids sort by creation time
    generation: Generation  #: what to generate
    state: JobState = JobState.QUEUED  #: current state; see ALLOWED_TRANSITIONS
    created_at: Timestamp  #: when the request was accepted
    started_at: Timestamp | None = None  #: when the first execution started
    completed_at: Timestamp | None = None  #: when the job reached its final state
    expires_at: Timestamp | None = None  #: when record and files of a completed job are deleted
    execution_id: str | None = None  #: the execution that has the job, while it runs and after it has ended it
    attempt: int = 0  #: executions so far, without those that ended because their worker was draining
    step: Count = 0  #: completed steps
    total_steps: Count = 0  #: steps of the whole job
    phase: Phase | None = None  #: stage of the running execution
    preview_at: Timestamp | None = None  #: when the newest preview of the running execution was stored
    cancel_requested: bool = False  #: whether the client has cancelled the job; a running one ends at its next step
    delete_requested: bool = False  #: whether the client has deleted the job while it ran; then it is not shown
    output: Output | None = None  #: the stored files, once completed
    error: JobError | None = None  #: why the job failed
    timings: dict[str, float] = {}  #: seconds per phase of the execution that completed the job
    gpu_ms: Count = Field(default=0, exclude_if=lambda ms: not ms)
    #: GPU time of all executions in milliseconds, steps that were repeated once; whole when the job has ended
    gpu_added_ms: Count = Field(default=0, exclude_if=lambda ms: not ms)  #: what the running execution added to it
    expected_gpu_ms: Count = Field(default=0, exclude_if=lambda ms: not ms)
    #: GPU time that it is expected to take, where its owner has a quota
    peak_memory_mb: float | None = None  #: peak GPU memory of that execution in MiB
    owner: str = LOCAL  #: owner id of the API key that made the request
    metadata: dict[str, str] = {}  #: the client's own key-value pairs
    user: str | None = None  #: the client's name for its end user
    callback: Callback | None = None  #: receiver of this job's webhooks
    traceparent: str | None = Field(default=None, exclude_if=lambda parent: parent is None)
    #: W3C trace context of the request, if it is traced
    priority: Priority = Priority.NORMAL  #: whether other queued jobs run first
    returned: bool = False  #: whether it has been put back at the front of its queue, where it is out of turn
    start_by: Timestamp | None = None  #: when the job fails if it is still queued
    remixed_from: str | None = None  #: id of the video of which this one is a remix

    @classmethod
    def new(cls, generation: Generation, **fields: Any) -> Self:
        """Return a queued job with a new id; `fields` are further fields of the record."""
        job_id = new_job_id()
        return cls(
            id=job_id,
            generation=generation,
            created_at=created_at(job_id),  # the same time, so that lists can be limited by it
            total_steps=generation.total_steps,
            **fields,
        )

    def is_overdue(self, now: float) -> bool:
        """Whether the job is still queued although its start_timeout_s has passed."""
        return self.state is JobState.QUEUED and self.start_by is not None and now > self.start_by

    @property
    def network_calls(self) -> dict[str, int]:
        """Calls of each network in the whole job, known before it starts."""
        return self.generation.network_calls

    @property
    def progress(self) -> int:
        """Percentage of completed steps; 100 only for a completed job."""
        if self.state is JobState.COMPLETED:
            return 100
        return min(99, 100 * self.step // max(self.total_steps, 1))
