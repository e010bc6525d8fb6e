"""Response bodies of the API, except the video object and those of webhooks."""

from __future__ import annotations

from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.catalog.bounds import Range
from service.catalog.optimise import Configuration
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation, Phase, Quantise
from service.jobs.queue_and_waiting_time import QueueStats, WorkerStats
from service.jobs.request import MAX_METADATA_PAIRS
from service.jobs.sampler_settings import Network, SamplerSettings
from service.jobs.step_cache import StepCache
from service.scopes import Scope
from service.wire.video import ResponseModel, Status, Video, VideoReference, unix_seconds

T = TypeVar("T")


class Page(ResponseModel, Generic[T]):
    """One page of a list; pass `last_id` as `after` to get the next one."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[Any], *, has_more: bool, **extra: Any) -> Self:
        """A page of entries with an `id`. An empty page has no `last_id`, so nothing can be got after it."""
        first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=has_more and bool(data), **extra)


class VideoList(Page[Video]):
    pass


class DeletedVideo(ResponseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


MOST_TO_CANCEL = 100  # videos per request, which bounds its time


class CancelRequest(BaseModel):
    """Either ids, or conditions: all videos of the caller that have not ended and meet them."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] | None = Field(default=None, min_length=1, max_length=MOST_TO_CANCEL)
    status: Literal["queued", "in_progress"] | None = None
    model: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=MAX_METADATA_PAIRS)
    created_before: float | None = Field(default=None, ge=0, description="Unix seconds")

    @model_validator(mode="after")
    def _has_ids_or_conditions(self) -> Self:
        # An empty `metadata` excludes no video: it is no condition, or a filter left empty would cancel all of them.
        conditions = [name for name, value in self if name != "ids" and value not in (None, {})]
        if (self.ids is None) == (not conditions):
            raise ValueError('send either ids, or conditions such as {"status": "queued"}')
        return self


class CancelledVideo(ResponseModel):
    id: str
    object: Literal["video"] = "video"
    status: Status | Literal["not_found"] = Field(
        description="`failed` if it is cancelled, `in_progress` until its worker has stopped, `completed` if it was, "
        "`not_found` if there is none that this key may cancel"
    )


class CancelledVideos(ResponseModel):
    object: Literal["list"] = "list"
    data: list[CancelledVideo]
    has_more: bool = Field(description="More videos meet the conditions: send the request again")


class VideoEstimate(ResponseModel):
    """A request with all defaults applied, and what it costs."""

    object: Literal["video.estimate"] = "video.estimate"
    model: str
    size: str
    seconds: str
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    seed: int | None = Field(description="null: random")
    sampler: SamplerSettings
    cache: StepCache | None
    loras: list[LoraUse]
    input_reference: VideoReference | None = Field(
        default=None, exclude_if=lambda reference: reference is None, description="Left out if there is none"
    )
    total_steps: int = Field(description="Those that run; with `input_reference`, the first ones are left out")
    network_calls: dict[str, int] = Field(description="Calls of each network in the whole run")
    cost: int = Field(description="Network calls x pixels x frames, see `max_cost` of the model")
    inference_time_s: float | None = Field(
        description="Expected from the model's last videos, without the wait in the queue and the upload; null if "
        "there are none"
    )

    @classmethod
    def of(cls, generation: Generation, inference_time_s: float | None, *, seed: int | None) -> Self:
        names = cls.model_fields.keys() & Generation.model_fields.keys() - {"seed"}
        return cls(
            **{name: getattr(generation, name) for name in names},
            size=f"{generation.width}x{generation.height}",
            seconds=f"{generation.seconds:g}",
            seed=seed,
            input_reference=VideoReference.of(generation),
            total_steps=generation.total_steps,
            network_calls=generation.network_calls,
            cost=generation.cost,
            inference_time_s=_rounded(inference_time_s),
        )


class Session(ResponseModel):
    """What the caller may do."""

    object: Literal["session"] = "session"
    auth: Literal["keys", "off"] = Field(description="Of this server; `off`: everybody may do everything")
    name: str | None = Field(description="Label of the API key; null without authentication")
    scopes: list[Scope]
    expires_at: int | None = Field(description="Unix seconds; null if the caller sent a key instead of the cookie")


class DeletedSession(ResponseModel):
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True


class ModelLora(ResponseModel):
    """A LoRA that requests may choose."""

    name: str
    description: str
    trigger_words: list[str] = Field(description="Words for the prompt that it was trained with")
    scale: float = Field(description="Default of its `scale`")
    networks: list[Network] = Field(description="The networks that it may change; by default all of them")


class Model(ResponseModel):
    """OpenAI's four fields, then the limits and defaults of the model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ivmix"
    aliases: list[str] = Field(description="Other names that requests may use; responses contain the id")
    description: str
    family: str
    sizes: list[str] = Field(description="The first one is the default")
    num_frames: Range
    fps: Range
    num_inference_steps: Range
    guidance_scale: Range
    image_guidance_scale: float | None = Field(
        description="Default of `guidance_scale` for sampler `ddim` with network `image`; null if it is the same"
    )
    image_enlarge: float = Field(description="Default of `enlarge` for sampler `evs`")
    negative_prompt: str
    sampler: SamplerSettings
    samplers: list[str] = Field(description="Values of `sampler.name`")
    experimental: list[str] = Field(description="Those of which nothing shows yet that they help with this model")
    sampler_settings: dict[str, list[str]] = Field(description="The settings in `sampler` that each of them reads")
    caches: list[str] = Field(
        validation_alias="possible_caches",
        description="Values of `cache.name`, which save time; each changes the video, see `approximations` there",
    )
    quantise: Quantise | None = Field(description="8-bit weights, which change every video; null: none")
    combinations: list[str] = Field(description="Values of `sampler.combination`; those with R require `goback_first`")
    loras: list[ModelLora] = Field(
        validation_alias="selectable_loras", description="What `loras` of a request may name; usually none"
    )
    max_cost: float | None = Field(description="Limit on network calls x pixels x frames of one video; null means none")
    max_prompt_length: int = Field(description="In characters")
    max_prompt_tokens: int | None = Field(
        description="Limit of the text encoders; longer prompts are rejected, not truncated"
    )
    prompt_chunks: int = Field(
        description="Texts may fill so many windows of `max_prompt_tokens`; above 1, BREAK begins another window"
    )
    prompt_weighting: bool = Field(description="Whether `(word:1.3)`, `(word)` and `[word]` weight words")
    clip_skip: int = Field(description="Default of `clip_skip`")
    can_draw: str | None = Field(description="What the model was trained to draw; null if anything")
    examples: list[str] = Field(description="Prompts that show what the model can do")


class ModelList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class QueueWorker(ResponseModel):
    name: str
    state: str = Field(description="starting, idle, busy or suspended")
    last_seen_at: int | None
    video_id: str | None = Field(description="Its current video; null if idle or if the video belongs to another key")
    phase: Phase | None
    step: int | None
    total_steps: int | None
    configuration: Configuration | None = Field(description="How its networks run; null for older workers")
    gpus: int = Field(description="How many GPUs compute each of its videos together; on a CPU, processes")


class ModelQueue(ResponseModel):
    model: str
    queued: int
    running: int
    workers: list[QueueWorker]
    videos_per_hour: float = Field(description="Completed in the last hour")
    seconds_per_video: float | None = Field(description="Mean inference time of recent videos")
    estimated_wait_s: float | None = Field(
        description="Estimate for a new video of this API key; null without workers or recent videos"
    )
    unavailable: str | None = Field(description="Why no worker can load the model; null otherwise")


class QueueReport(ResponseModel):
    object: Literal["queue"] = "queue"
    data: list[ModelQueue]


def model_queue(stats: QueueStats, visible_owner: str | None, unavailable: str | None = None) -> ModelQueue:
    """`visible_owner`: whose video ids are shown; None means all. `unavailable`: why no worker can load the model."""
    return ModelQueue(
        model=stats.model,
        queued=stats.queued,
        running=stats.running,
        workers=[_worker(worker, visible_owner) for worker in stats.workers],
        videos_per_hour=stats.videos_per_hour,
        seconds_per_video=_rounded(stats.seconds_per_video),
        estimated_wait_s=_rounded(stats.estimated_wait_s),
        unavailable=unavailable,
    )


def _worker(stats: WorkerStats, visible_owner: str | None) -> QueueWorker:
    job = stats.job
    return QueueWorker(
        name=stats.name,
        state=stats.state,
        last_seen_at=unix_seconds(stats.last_seen),
        video_id=job.id if job and visible_owner in (None, job.owner) and not job.delete_requested else None,
        phase=job.phase if job else None,
        step=job.step if job else None,
        total_steps=job.total_steps if job else None,
        configuration=_configuration(stats.configuration),
        gpus=stats.gpus,
    )


def _configuration(text: str | None) -> Configuration | None:
    """None also for that of a newer worker."""
    try:
        return None if text is None else Configuration.model_validate_json(text)
    except ValidationError:
        return None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)
