"""What the installed models can do, read from TOML files. Turns a request into a Generation, or says what to change."""

from __future__ import annotations

import re
import secrets
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from service.errors import ConfigurationError, InvalidParameter, ModelNotFound
from service.jobs import Frozen, Generation, SamplerSettings, VideoRequest


class Range(Frozen):
    """Inclusive bounds and the value used when a request names none."""

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


class Prompting(Frozen):
    """A closed world: the words a model was trained on, and what to tell somebody who used another one."""

    vocabulary: frozenset[str]
    can_draw: str


class ModelEntry(Frozen):
    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    family: Literal["animatediff"]
    path: Path
    created: int
    description: str
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")], ...] = Field(min_length=1)
    upscale: int = Field(default=1, ge=1)
    cpu_threads: int | None = Field(
        default=None, ge=1, description="on a CPU worker; tiny networks are fastest with one"
    )
    num_frames: Range
    fps: Range
    num_inference_steps: Range
    guidance_scale: Range
    negative_prompt: str = ""
    sampler: SamplerSettings = SamplerSettings()
    max_prompt_length: int = 2000
    prompt: Prompting | None = None

    @classmethod
    def load(cls, file: Path) -> ModelEntry:
        try:
            raw = tomllib.loads(file.read_text())
            return cls.model_validate(raw | {"path": (file.parent / raw["path"]).resolve()})
        except (OSError, KeyError, ValueError) as e:
            raise ConfigurationError(f"model file {file}: {e}") from e

    def resolve(self, request: VideoRequest) -> Generation:
        """Fill in what was left open. Raises InvalidParameter for anything this model cannot do."""
        negative_prompt = self.negative_prompt if request.negative_prompt is None else request.negative_prompt
        self._check_text("prompt", request.prompt)
        self._check_text("negative_prompt", negative_prompt)
        width, height = self._size(request)
        fps = int(self.fps.resolve("fps", request.fps))
        return Generation(
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
        )

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

    def _sampler(self, changes: dict[str, Any]) -> SamplerSettings:
        try:
            return SamplerSettings.model_validate(self.sampler.model_dump() | changes)
        except ValidationError as e:
            raise invalid_parameter(e, within="sampler") from e


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


class ModelRegistry:
    """The models of this server, in the order of the settings; the first one is the default."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._entries: dict[str, ModelEntry] = {}
        for entry in entries:
            if entry.id in self._entries:
                raise ConfigurationError(f"two model files say id = '{entry.id}'")
            self._entries[entry.id] = entry

    @classmethod
    def load(cls, paths: Iterable[Path]) -> ModelRegistry:
        return cls(map(ModelEntry.load, paths))

    def ids(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def get(self, model: str | None = None) -> ModelEntry:
        """Raises ModelNotFound."""
        entry = self._entries.get(model or self.ids()[0])
        if entry is None:
            raise ModelNotFound(str(model), self.ids())
        return entry
