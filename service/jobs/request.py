"""A client's request for a video, before the model's defaults are applied."""

from __future__ import annotations

from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from service.frozen_model import FrozenModel
from service.jobs.lora_choice import MAX_LORAS, LoraRequest, as_list, unique_loras
from service.jobs.model import EVENT_TYPES, Callback, EventType, Generation, Job, Priority
from service.jobs.reference import ConditioningScale, ReferenceFile, ReferenceUse, Strength
from service.jobs.step_cache import StepCacheRequest
from service.json_text import parse_json

MAX_SEED = 2**63 - 1
MAX_NUM_VIDEOS = 16

MAX_METADATA_PAIRS = 16
MAX_METADATA_NAME = 64  # characters

Metadata = dict[Annotated[str, Field(max_length=MAX_METADATA_NAME)], Annotated[str, Field(max_length=512)]]
Loras = Annotated[
    tuple[LoraRequest, ...], BeforeValidator(as_list), Field(max_length=MAX_LORAS), AfterValidator(unique_loras)
]

# Names that other servers use.
ALIASES = {
    "webhook_url": "callback_url",
    "duration": "seconds",
    "lora": "loras",
    "n": "num_videos",
    "num_outputs_per_prompt": "num_videos",
    "num_videos_per_prompt": "num_videos",
}


def resolve_aliases(given: dict[str, Any]) -> dict[str, Any]:
    """The fields under the names of VideoRequest. Raises ValueError if two names of one field differ."""
    fields = {name: value for name, value in given.items() if name not in ALIASES}
    for alias in ALIASES.keys() & given.keys():
        name, value = ALIASES[alias], given[alias]
        if alias == "duration" and isinstance(value, str):
            value = value.removesuffix("s")  # Luma and Runway write "5s"
        if fields.setdefault(name, value) is None:
            fields[name] = value
        if value is not None and str(fields[name]) != str(value):
            raise ValueError(f"{name} and {alias} are the same field, but differ")
    return fields


class VideoRequest(FrozenModel):
    """A request for a video. Omitted fields take the defaults of the model."""

    prompt: str = Field(min_length=1, max_length=32_000, description="What the video shows")
    model: str | None = Field(default=None, description="A model id of GET /v1/models; default: the first one")
    seconds: float | None = Field(
        default=None, gt=0, le=3600, description="Must equal num_frames / fps if all are given; alias: duration"
    )
    size: str | None = Field(
        default=None,
        max_length=40,
        description="WIDTHxHEIGHT in pixels; one of the model's sizes",
        json_schema_extra={"pattern": r"^\d{1,5}x\d{1,5}$"},  # the error about another text names the sizes instead
    )
    aspect_ratio: str | None = Field(
        default=None, max_length=40, description="Such as 16:9; chooses among the model's sizes, exactly"
    )
    resolution: str | None = Field(
        default=None, max_length=40, description="Such as 480p, the shorter side; chooses among the model's sizes"
    )
    width: int | None = Field(default=None, ge=1, description="Alternative to size, together with height")
    height: int | None = Field(default=None, ge=1, description="Alternative to size, together with width")
    num_frames: int | None = Field(default=None, ge=1)
    fps: int | None = Field(default=None, ge=1)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(
        default=None,
        description="Classifier-free guidance. 1: the prompt alone, without negative_prompt. Below 1: between prompt "
        "and negative_prompt; 0: negative_prompt alone. (diffusers treats every value up to 1 like 1.)",
    )
    negative_prompt: str | None = Field(default=None, max_length=32_000)
    clip_skip: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Layers at the end of the text encoders that the prompt skips, as in diffusers: 1 is the last "
        "layer but one, which other user interfaces call Clip skip 2; 0 skips none",
    )
    num_videos: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NUM_VIDEOS,
        description="Creates so many videos, with seeds one apart; aliases: n, num_outputs_per_prompt, "
        "num_videos_per_prompt",
    )
    seed: int | None = Field(
        default=None, ge=-1, le=MAX_SEED, description="Random if omitted or -1; the one used is always returned"
    )
    sampler: dict[str, Any] | None = Field(default=None, description="Overrides of the model's sampler settings")
    cache: StepCacheRequest | None = Field(
        default=None,
        description="Approximate: reuse what earlier calls of the networks computed. One of the model's `caches` in "
        "GET /v1/models, by its name or with settings. Default: every call is computed",
    )
    loras: Loras | None = Field(default=None, description="Of the model's list in GET /v1/models; alias: lora")
    input_reference: ReferenceFile | None = Field(
        default=None,
        description="Picture (PNG, JPEG, WebP) or clip (MP4, WebM, MOV) that the video starts from: a file in a form, "
        "a data URL, or the id of a video",
    )
    strength: Strength | None = Field(
        default=None,
        description="How much of the reference is replaced: the share of num_inference_steps that runs. Default: 0.8",
    )
    reference_use: ReferenceUse | None = Field(
        default=None,
        description="start: the run begins at the noised reference. first_frame: the picture, or the first frame of "
        "the clip, becomes the first frame, for models with a SparseCtrl network. Default: first_frame of a picture if "
        "the model can do it, else start",
    )
    conditioning_scale: ConditioningScale | None = Field(
        default=None, description="first_frame: how strongly the picture counts. Default: 1"
    )
    metadata: Metadata = Field(
        default_factory=dict,
        max_length=MAX_METADATA_PAIRS,
        description="Returned unchanged; lists can be filtered by it",
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
    def _resolve_aliases(cls, given: Any) -> Any:
        return resolve_aliases(cast(dict[str, Any], given)) if isinstance(given, dict) else given

    @field_validator("seed")
    @classmethod
    def _minus_one_is_random(cls, seed: int | None) -> int | None:
        return None if seed == -1 else seed

    @field_validator("num_videos")
    @classmethod
    def _one_is_the_default(cls, count: int | None) -> int | None:
        return None if count == 1 else count  # so that the request's fingerprint is that of one without the field

    @field_validator("callback_events", mode="before")
    @classmethod
    def _split_events(cls, value: object) -> object:
        """Forms send a list as a[]=.., as JSON text or joined by commas."""
        if not isinstance(value, str):
            return value
        try:
            return parse_json(value)
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

    def to_job(self, generation: Generation, **fields: Any) -> Job:
        """Return a new queued job.

        Args:
            generation: this request with the model's defaults applied.
            fields: more fields of the job, such as owner.
        """
        fields |= {"metadata": self.metadata, "user": self.user, "callback": self.callback, "priority": self.priority}
        job = Job.new(generation, **fields)
        if self.start_timeout_s is None:
            return job
        return job.model_copy(update={"start_by": job.created_at + self.start_timeout_s})
