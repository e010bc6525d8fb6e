"""What a model can do and what it is made of. Turns a request into a Generation, or says what to change."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from service.base import FrozenModel
from service.catalog.weight_files import Component, in_folder
from service.errors import InvalidParameter
from service.jobs.model import Generation, VideoRequest
from service.jobs.sampling import USES, SamplerSettings, Spacing

# The components each family is made of, and those that may be left out: without image_unet the image model is the
# video model's own base, without image_tokenizer and image_text_encoder it reads the video model's embeddings.
NEEDED = {
    "animatediff": ("tokenizer", "text_encoder", "vae", "unet", "motion_adapter", "scheduler"),
    "modelscope": ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet"),
    "videocrafter": ("tokenizer", "text_encoder", "vae", "unet", "scheduler", "image_unet"),
}
OPTIONAL = ("image_unet", "image_scheduler", "image_tokenizer", "image_text_encoder")
LORA = "lora"  # one file, for the image model; always named

# What CLIP's tokenizer splits a text into before it merges letters: every piece is one token or more.
CLIP_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)


class Range(FrozenModel):
    """Inclusive bounds, and the default."""

    default: int | float
    min: int | float
    max: int | float

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"min={self.min:g}, default={self.default:g}, max={self.max:g} do not rise")
        return self

    def resolve(self, param: str, value: float | None) -> float:
        if value is None:
            return self.default
        if not self.min <= value <= self.max:
            raise InvalidParameter(param, f"{param}={value:g} is outside {self.min:g}..{self.max:g} for this model.")
        return value


class Prompting(FrozenModel):
    """A closed world: the words a model was trained on, and what to tell somebody who used another one."""

    vocabulary: frozenset[str]
    can_draw: str


class Optimise(FrozenModel):
    """Short cuts in the networks that change results by rounding at most; each can be left out for one model."""

    text_once: bool = Field(default=True, description="keys and values of the prompt once per job, not in every call")
    halves_once: bool = Field(default=True, description="the guidance halves are one until they first see their texts")
    time_table: bool = Field(default=True, description="time embeddings from a table")
    channels_last: bool = Field(default=False, description="convolutions of both networks in that order of memory")
    compile: bool = Field(default=False, description="torch.compile of the networks' blocks; costs time at first use")


class ModelEntry(FrozenModel):
    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    family: Literal["animatediff", "modelscope", "videocrafter"]
    path: Path | None = Field(default=None, description="folder of the components that `components` does not name")
    components: dict[str, Component] = {}
    created: int
    description: str
    licence: str = Field(description="of the weights, for whoever runs them; ivmix does not enforce it")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float16", description="on a GPU; a CPU runs float32"
    )
    spacing: Spacing = Spacing()
    video_schedule: dict[str, JsonValue] = Field(default={}, description="in place of the scheduler's own config")
    image_schedule: dict[str, JsonValue] = Field(default={}, description="in place of the image_scheduler's own config")
    lora_scale: float = 1.0
    optimise: Optimise = Optimise()
    network_fps: int | None = Field(
        default=None, ge=1, description="videocrafter: the frame rate its network is told; the clip's own if left out"
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
    max_cost: float | None = Field(default=None, gt=0, description="most network calls x pixels x frames of a clip")
    negative_prompt: str = ""
    sampler: SamplerSettings = SamplerSettings()
    max_prompt_length: int = 2000
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="what the text encoders read, 77 for CLIP")
    prompt: Prompting | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        known = {*NEEDED[self.family], *OPTIONAL, LORA}
        if unknown := set(self.components) - known:
            raise ValueError(f"components {', '.join(sorted(unknown))}: {self.family} has {', '.join(sorted(known))}")
        if LORA in self.components and not self.components[LORA].is_file:
            raise ValueError(f"components.{LORA} must name a .safetensors file, 'source/file.safetensors'")
        if self.path is None and (missing := set(NEEDED[self.family]) - set(self.components)):
            raise ValueError(f"components lack {', '.join(sorted(missing))}, and there is no path to look for them")
        if self.num_inference_steps.max > self.spacing.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps.max={self.num_inference_steps.max} is above "
                f"spacing.num_train_timesteps={self.spacing.num_train_timesteps}"
            )
        return self

    @property
    def parts(self) -> dict[str, Component]:
        """Every component, also those that have not been fetched; optional ones where there are any."""
        parts = dict(self.components)
        if self.path is not None:
            names = NEEDED[self.family] + tuple(name for name in OPTIONAL if (self.path / name).exists())
            parts = {name: in_folder(name, self.path) for name in names} | parts
        return parts

    @property
    def missing(self) -> list[str]:
        """The components that are not on this machine."""
        return [name for name, part in self.parts.items() if not part.is_here]

    @property
    def default_generation(self) -> Generation:
        """What most jobs will ask for, whatever they draw."""
        words = self.prompt.vocabulary if self.prompt else {"video"}
        return self.resolve(VideoRequest(prompt=min(words), seed=0))

    def resolve(self, request: VideoRequest) -> Generation:
        """Fill in what was left open. Raises InvalidParameter for anything this model cannot do."""
        negative_prompt = self.negative_prompt if request.negative_prompt is None else request.negative_prompt
        self._check_text("prompt", request.prompt)
        self._check_text("negative_prompt", negative_prompt)
        width, height = self._size(request)
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
            num_inference_steps=int(
                self.num_inference_steps.resolve("num_inference_steps", request.num_inference_steps)
            ),
            guidance_scale=self.guidance_scale.resolve("guidance_scale", request.guidance_scale),
            sampler=self._sampler(request.sampler or {}),
            spacing=self.spacing,
        )
        self._check_cost(generation)
        return generation

    @property
    def can_draw(self) -> str | None:
        return self.prompt.can_draw if self.prompt else None

    def _check_text(self, param: str, text: str) -> None:
        if len(text) > self.max_prompt_length:
            raise InvalidParameter(
                param,
                f"{param} has {len(text)} characters; model '{self.id}' reads at most {self.max_prompt_length}.",
                "string_above_max_length",
            )
        pieces = len(CLIP_PIECES.findall(text)) + 2  # and the marks of start and end
        if self.max_prompt_tokens is not None and pieces > self.max_prompt_tokens:
            raise InvalidParameter(
                param,
                f"{param} has {pieces} tokens or more; model '{self.id}' reads {self.max_prompt_tokens}. Shorten it.",
                "string_above_max_length",
            )
        words = re.findall(r"[^\s,.;:!?'\"()-]+", text.lower())
        if param == "prompt" and not words:
            raise InvalidParameter(param, f"prompt is empty. {self.can_draw or ''}".rstrip())
        unknown = sorted(set(words) - self.prompt.vocabulary) if self.prompt else []
        if unknown:
            shown = ", ".join(f"'{word[:40]}'" for word in unknown[:10])
            raise InvalidParameter(param, f"{param}: model '{self.id}' does not know {shown}. {self.can_draw}")

    def _size(self, request: VideoRequest) -> tuple[int, int]:
        sides = (request.width, request.height)
        if (request.width is None) != (request.height is None):
            raise InvalidParameter("width" if request.width is None else "height", "width and height go together.")
        wanted = request.size or (f"{sides[0]}x{sides[1]}" if sides[0] else self.sizes[0])
        if wanted not in self.sizes:
            raise InvalidParameter(
                "size" if request.size else "width",
                f"Invalid value: '{wanted}'. Supported values are: {', '.join(self.sizes)}.",
            )
        width, height = map(int, wanted.split("x"))
        if sides[0] and sides != (width, height):
            raise InvalidParameter("width", f"width and height say {sides[0]}x{sides[1]}, size says {wanted}.")
        return width, height

    def _num_frames(self, request: VideoRequest, fps: int) -> int:
        """`seconds` alone decides the frames; beside `num_frames` it has to agree."""
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
            message = f"Invalid value: '{request.seconds:g}'. Supported at {fps} fps: {possible}."
            raise InvalidParameter("seconds", message)
        return round(wanted)

    def _sampler(self, changes: Mapping[str, Any]) -> SamplerSettings:
        """A setting that the chosen sampler does not read is refused, unless it says what the model says anyway."""
        given = {name: value for name, value in changes.items() if value is not None}
        try:
            chosen = SamplerSettings.model_validate(self.sampler.model_dump() | given)
        except ValidationError as e:
            raise invalid_parameter(e, within="sampler") from e
        for name in set(given) - USES[chosen.name] - {"name"}:
            if getattr(chosen, name) != getattr(self.sampler, name):
                readers = ", ".join(reader for reader, settings in USES.items() if name in settings)
                message = f"Sampler '{chosen.name}' has no {name}; leave it out, or use {readers}."
                raise InvalidParameter(f"sampler.{name}", message)
        return chosen

    def _check_cost(self, generation: Generation) -> None:
        """Names the first parameter that would be enough if it were at the model's default."""
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
            f"{most:.3g} at most. Ask for fewer num_inference_steps or num_frames, a smaller size, or a sampler with "
            "fewer calls.",
        )


def _same(frames: float, whole: int) -> bool:
    return abs(frames - whole) < 0.01  # `seconds` is sent with six digits


def invalid_parameter(e: ValidationError, *, within: str = "") -> InvalidParameter:
    """The first complaint of pydantic in our words; the rest comes when the client tries again."""
    error = e.errors(include_url=False, include_input=False)[0]
    param = ".".join(filter(None, (within, *map(str, error["loc"])))) or None
    reason = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "string_too_long": "string_above_max_length",
    }.get(error["type"], "invalid_value")
    message = {
        "missing_required_parameter": f"Missing required parameter: '{param}'.",
        "unknown_parameter": f"Unknown parameter: '{param}'.",
    }.get(reason, f"Invalid value for '{param or 'body'}': {error['msg'].removeprefix('Value error, ')}.")
    return InvalidParameter(param, message, reason)
