"""A model of the registry: its components, limits and defaults. Resolves a request into a Generation."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from service.catalog.adapters import Lora, TextualInversion, without_tokens
from service.catalog.closed_vocabulary import ClosedVocabulary
from service.catalog.family_components import LORA, OPTIONAL_COMPONENTS, REQUIRED_COMPONENTS, Family
from service.catalog.frame_size import choose_size
from service.catalog.optimise import Optimise
from service.catalog.sampler_choice import choose_sampler, settings_of
from service.catalog.scheduler_settings import check_overrides, named_spacing, run_spacing
from service.catalog.weight_files import Component
from service.errors import InvalidParameter
from service.frozen_model import FrozenModel
from service.jobs.model import Generation
from service.jobs.released_loops import RELEASED
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES, Network, SamplerSettings
from service.jobs.timestep_spacing import Spacing
from service.validation_messages import invalid_value, unknown_parameter

# How CLIP's tokenizer splits a text before it merges letters: every piece is at least one token.
CLIP_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class Range(FrozenModel):
    """Inclusive bounds, and the default."""

    default: int | float
    min: int | float
    max: int | float

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"min={self.min:g}, default={self.default:g}, max={self.max:g} must be in ascending order")
        return self

    def resolve(self, param: str, value: float | None) -> float:
        if value is None:
            return self.default
        if not self.min <= value <= self.max:
            raise InvalidParameter(param, f"{param}={value:g} is outside {self.min:g}..{self.max:g} for this model.")
        return value


class ModelEntry(FrozenModel):
    id: str = Field(pattern=NAME)
    aliases: tuple[Annotated[str, Field(pattern=NAME)], ...] = Field(
        default=(), description="other names that requests may use, such as sora-2"
    )
    family: Family
    path: Path | None = Field(default=None, description="folder with the components that `components` does not name")
    components: dict[str, Component] = {}
    created: int
    description: str
    licence: str = Field(description="of the weights; shown, not enforced")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float16", description="on a GPU; a CPU always runs float32"
    )
    vae_dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        default=None, description="of the autoencoder on a GPU; default: dtype, or what force_upcast in its config asks"
    )
    spacing: Spacing = Field(
        default=Spacing(), description="what it names overrides the configs of scheduler and image_scheduler"
    )
    video_schedule: dict[str, JsonValue] = Field(default={}, description="overrides of the scheduler's config")
    image_schedule: dict[str, JsonValue] = Field(default={}, description="overrides of the image_scheduler's config")
    lora_scale: float = Field(default=1.0, description="of components.lora, for the image model")
    loras: tuple[Lora, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    optimise: Optimise = Optimise()
    network_fps: int | None = Field(
        default=None, ge=1, description="videocrafter: frame rate that conditions the network; default: the clip's"
    )
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")], ...] = Field(min_length=1)
    upscale: int = Field(default=1, ge=1)
    cpu_threads: int | None = Field(
        default=None, ge=1, description="on a CPU worker; tiny networks are fastest with one"
    )
    num_frames: Range
    fps: Range
    num_inference_steps: Range
    guidance_scale: Range
    image_guidance_scale: float | None = Field(
        default=None, description="default guidance_scale of ddim with network image; default: that of guidance_scale"
    )
    max_cost: float | None = Field(default=None, gt=0, description="limit of network calls x pixels x frames of a clip")
    negative_prompt: str = ""
    force_zeros_for_empty_prompt: bool = Field(default=True, description="SDXL: zeros stand for no negative prompt")
    sampler: SamplerSettings = SamplerSettings()
    max_prompt_length: int = 2000
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="limit of the text encoders, 77 for CLIP")
    prompt: ClosedVocabulary | None = None
    examples: tuple[str, ...] = Field(default=(), description="prompts that pages offer")

    @field_validator("video_schedule", "image_schedule")
    @classmethod
    def _check_overrides(cls, overrides: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        check_overrides(info.field_name or "", overrides)
        return overrides

    @model_validator(mode="after")
    def _check_components_and_steps(self) -> Self:
        known = {*REQUIRED_COMPONENTS[self.family], *OPTIONAL_COMPONENTS[self.family], LORA}
        if unknown := set(self.components) - known:
            raise ValueError(
                f"components has unknown {', '.join(sorted(unknown))}; {self.family} takes {', '.join(sorted(known))}"
            )
        if LORA in self.components and not self.components[LORA].is_file:
            raise ValueError(f"components.{LORA} must name a .safetensors file, 'source/file.safetensors'")
        tokens = [inversion.token.lower() for inversion in self.textual_inversions]
        if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(f"textual_inversions has the token {twice[0]} twice; CLIP ignores upper and lower case")
        missing = set(REQUIRED_COMPONENTS[self.family]) - set(self.components)
        if self.path is None and missing:
            raise ValueError(
                f"components lack {', '.join(sorted(missing))}, and the entry has no path; name them or add a path"
            )
        scale, bounds = self.image_guidance_scale, self.guidance_scale
        if scale is not None and not bounds.min <= scale <= bounds.max:
            raise ValueError(
                f"image_guidance_scale={scale:g} is outside guidance_scale, {bounds.min:g}..{bounds.max:g}"
            )
        named = named_spacing(self.spacing, self.video_schedule).get("num_train_timesteps")
        if named is not None and self.num_inference_steps.max > named:
            raise ValueError(
                f"num_inference_steps.max={self.num_inference_steps.max} is above num_train_timesteps={named}"
            )
        return self

    @property
    def all_components(self) -> dict[str, Component]:
        """The named components and those in `path`, fetched or not; optional ones only where they, or a link, exist."""
        files = (adapter.file for adapter in (*self.loras, *self.textual_inversions))
        named = self.components | {file.name: file for file in files}
        if self.path is None:
            return named
        optional = (name for name in OPTIONAL_COMPONENTS[self.family] if os.path.lexists(self.path / name))
        names = (*REQUIRED_COMPONENTS[self.family], *optional)
        return {name: Component.in_folder(name, self.path) for name in names} | named

    @property
    def all_loras(self) -> tuple[Lora, ...]:
        """`loras`, preceded by `components.lora`."""
        file = self.components.get(LORA)
        return self.loras if file is None else (Lora(file=file, scale=self.lora_scale), *self.loras)

    @property
    def missing(self) -> list[str]:
        """Names of the components that are not on this machine."""
        return [name for name, component in self.all_components.items() if not component.is_available]

    def spacing_of(self, network: Network) -> Spacing:
        """The timesteps of a run on the schedule of one network."""
        overrides = self.image_schedule if network == "image" else self.video_schedule
        components = self.all_components
        scheduler = components["scheduler"]
        own = components.get("image_scheduler", scheduler) if network == "image" else scheduler
        return run_spacing(named_spacing(self.spacing, overrides), own)

    def _network_of(self, sampler: SamplerSettings) -> Network:
        """The network on whose schedule a run goes; AnimateDiff's released code has only that of its base."""
        is_on_base = sampler.name == "official" and self.family == "animatediff"
        return "image" if sampler.is_image_alone or is_on_base else "video"

    @property
    def default_generation(self) -> Generation:
        """A request with nothing but a prompt: what most jobs look like."""
        words = self.prompt.vocabulary if self.prompt else {"video"}
        return self.resolve(VideoRequest(prompt=min(words), seed=0))

    def resolve(self, request: VideoRequest) -> Generation:
        """Fill in the defaults of this model. Raises InvalidParameter for anything it cannot do."""
        sampler = self._sampler(request.sampler or {})
        spacing = self.spacing_of(self._network_of(sampler))
        negative_prompt = request.negative_prompt
        if negative_prompt is None:
            negative_prompt = "" if sampler.name == "official" else self.negative_prompt
        self._check_text("prompt", request.prompt)
        self._check_text("negative_prompt", negative_prompt)
        width, height = choose_size(request, self.sizes)
        fps = int(self.fps.resolve("fps", request.fps))
        generation = Generation(
            model=self.id,
            prompt=request.prompt,
            negative_prompt=negative_prompt,
            # 32 bits: a JavaScript client can send the number back without rounding it
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            width=width,
            height=height,
            num_frames=self._num_frames(request, fps),
            fps=fps,
            num_inference_steps=self._num_inference_steps(request, sampler, spacing),
            guidance_scale=self._guidance_scale(request, sampler),
            sampler=sampler,
            spacing=spacing,
            official_family=self.family if sampler.name == "official" else None,
        )
        self._check_cost(generation)
        return generation

    @property
    def can_draw(self) -> str | None:
        return self.prompt.can_draw if self.prompt else None

    @property
    def sampler_settings(self) -> dict[str, list[str]]:
        """Names of the settings that each sampler reads for this model."""
        return {sampler: sorted(settings_of(sampler, self.family)) for sampler in USES}

    def _check_text(self, param: str, text: str) -> None:
        if len(text) > self.max_prompt_length:
            raise InvalidParameter(
                param,
                f"{param} has {len(text)} characters; model '{self.id}' reads at most {self.max_prompt_length}.",
                "string_above_max_length",
            )
        words, inversions = without_tokens(text, self.textual_inversions)  # each is at least one token
        pieces = len(CLIP_PIECES.findall(words)) + inversions + 2  # start and end tokens
        if self.max_prompt_tokens is not None and pieces > self.max_prompt_tokens:
            raise InvalidParameter(
                param,
                f"{param} has at least {pieces} tokens; model '{self.id}' reads {self.max_prompt_tokens}. Shorten it.",
                "string_above_max_length",
            )
        if param == "prompt" and not _words(text):
            raise InvalidParameter(param, f"prompt is empty. {self.can_draw or ''}".rstrip())
        self.check_vocabulary(param, text)

    def check_vocabulary(self, param: str, text: str) -> None:
        """Raises InvalidParameter naming `param` and the words that a model with a closed vocabulary does not know."""
        if self.prompt is not None:
            self.prompt.check(param, self.id, _words(without_tokens(text, self.textual_inversions)[0]))

    def _num_frames(self, request: VideoRequest, fps: int) -> int:
        """`seconds` alone sets the number of frames; together with `num_frames` it must agree."""
        wanted = None if request.seconds is None else request.seconds * fps
        if wanted is None or request.num_frames is not None:
            num_frames = int(self.num_frames.resolve("num_frames", request.num_frames))
            if wanted is not None and not _same(wanted, num_frames):
                message = f"seconds={request.seconds:g} is not num_frames={num_frames} at fps={fps}; leave one out."
                raise InvalidParameter("seconds", message)
            return num_frames
        if not self.num_frames.min <= round(wanted) <= self.num_frames.max or not _same(wanted, round(wanted)):
            shortest, longest = (f"{n / fps:g}" for n in (self.num_frames.min, self.num_frames.max))
            possible = f"'{shortest}'" if shortest == longest else f"'{shortest}' to '{longest}', in whole frames"
            message = f"Invalid value for 'seconds': '{request.seconds:g}'. Supported at {fps} fps: {possible}."
            message += self._fps_hint(request.seconds or 0, fps)
            raise InvalidParameter("seconds", message)
        return round(wanted)

    def _fps_hint(self, seconds: float, fps: int) -> str:
        """The frame rate nearest to `fps` at which the model can make exactly this duration."""
        rates = range(int(self.fps.min), int(self.fps.max) + 1)
        for rate in sorted(rates, key=lambda rate: abs(rate - fps)):
            frames = round(seconds * rate)
            if self.num_frames.min <= frames <= self.num_frames.max and _same(seconds * rate, frames):
                return f" Send fps={rate} as well to get it."
        return ""

    def _num_inference_steps(self, request: VideoRequest, sampler: SamplerSettings, spacing: Spacing) -> int:
        steps = int(self.num_inference_steps.resolve("num_inference_steps", request.num_inference_steps))
        if sampler.name == "official":
            most = RELEASED[self.family].most_steps(spacing.num_train_timesteps)
            if steps > most:
                message = f"num_inference_steps={steps}: the released {self.family} code takes at most {most} here."
                raise InvalidParameter("num_inference_steps", message)
        if not spacing.is_estimate and steps > spacing.num_train_timesteps:
            message = f"num_inference_steps={steps} is above the network's {spacing.num_train_timesteps} timesteps."
            raise InvalidParameter("num_inference_steps", message)
        return steps

    def _guidance_scale(self, request: VideoRequest, sampler: SamplerSettings) -> float:
        """An image network by itself is at its best with another guidance than one that a video network corrects."""
        wanted = request.guidance_scale
        if wanted is None and sampler.is_image_alone:
            wanted = self.image_guidance_scale
        return self.guidance_scale.resolve("guidance_scale", wanted)

    def _sampler(self, changes: Mapping[str, Any]) -> SamplerSettings:
        try:
            return choose_sampler(self.sampler, self.family, changes)
        except ValidationError as e:
            known = [f"sampler.{name}" for name in SamplerSettings.model_fields]
            raise invalid_parameter(e, within="sampler", known=known) from e

    def _check_cost(self, generation: Generation) -> None:
        """The error names the first parameter whose default would bring the cost below the limit."""
        most = self.max_cost
        if most is None or generation.cost <= most:
            return
        width, height = min((tuple(map(int, size.split("x"))) for size in self.sizes), key=lambda wh: wh[0] * wh[1])
        levers: dict[str, dict[str, Any]] = {
            "num_inference_steps": {"num_inference_steps": int(self.num_inference_steps.default)},
            "num_frames": {"num_frames": int(self.num_frames.default)},
            "size": {"width": width, "height": height},
            "sampler": {"sampler": self.sampler},
        }
        cheaper = (name for name, change in levers.items() if generation.model_copy(update=change).cost <= most)
        raise InvalidParameter(
            next(cheaper, "num_inference_steps"),
            f"This clip costs {generation.cost:.3g} (network calls x pixels x frames); model '{self.id}' takes "
            f"at most {most:.3g}. Ask for fewer num_inference_steps or num_frames, a smaller size, or a sampler with "
            "fewer calls.",
        )


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?'\"()-]+", text.lower())


def _same(frames: float, whole: int) -> bool:
    return abs(frames - whole) < 0.01  # clients send `seconds` with six digits


def invalid_parameter(e: ValidationError, *, within: str = "", known: Iterable[str] = ()) -> InvalidParameter:
    """The first error of pydantic as InvalidParameter; the client gets the next one when it tries again.

    Args:
        within: the field that was validated.
        known: names to suggest instead of an unknown one.
    """
    error = e.errors(include_url=False)[0]
    param = ".".join(filter(None, (within, *map(str, error["loc"])))) or None
    reason = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "string_too_long": "string_above_max_length",
    }.get(error["type"], "invalid_value")
    message = {
        "missing_required_parameter": lambda: f"Missing required parameter: '{param}'.",
        "unknown_parameter": lambda: unknown_parameter(param or "", known),
    }.get(reason, lambda: invalid_value(param or "body", error))
    return InvalidParameter(param, message(), reason)
