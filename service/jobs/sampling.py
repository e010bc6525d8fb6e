"""How a clip is sampled: the settings a client may change, and the network calls they cost, counted without torch.

The worker's plan (package `sampler`) is what runs; a test holds its calls and the count here equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from service.base import FrozenModel

Guidance = Annotated[float, Field(ge=0, le=100)]

# Which settings each sampler reads; all of them read num_inference_steps and guidance_scale.
USES: dict[str, frozenset[str]] = {
    "iv-mixed": frozenset(
        {"combination", "order", "interval", "image_guidance", "video_guidance", "rho", "image_every"}
    ),
    "ddim": frozenset(),
    "zigzag": frozenset({"interval", "goback_guidance"}),
    "freeinit": frozenset({"iterations"}),
    "fused": frozenset({"interval", "image_guidance", "video_guidance", "rho"}),
}

LETTERS = {"I": "image", "V": "video"}
# One or two letters on each side, as many on both; R, Gaussian noise, goes back only.
COMBINATIONS = tuple(
    f"{''.join(back)}-{''.join(forth)}"
    for width in (1, 2)
    for back in product("IVR", repeat=width)
    for forth in product("IV", repeat=width)
)
CLEAN = -1  # the level without any noise; the others are named by their timestep

Move = tuple[str, int, int]  # model, from level, to level; equal levels are one, and nothing is called between them


class SamplerSettings(FrozenModel):
    """Sampler and its settings. `iv-mixed` is the IV-Mixed Sampler (arXiv:2410.04171), `ddim` uses only the video
    model, `zigzag` is Z-Sampling, `freeinit` is FreeInit around `ddim`, `fused` is experimental. A setting that the
    sampler does not use can only have the model's value."""

    name: Literal["iv-mixed", "ddim", "zigzag", "freeinit", "fused"] = "iv-mixed"
    combination: str = Field(
        default="IV-IV",
        description="iv-mixed: models that invert, dash, models that denoise; I (image), V (video), "
        "before the dash also R (Gaussian noise)",
    )
    order: Literal["denoise_first", "goback_first"] = Field(
        default="denoise_first", validate_default=True, description="iv-mixed: R requires goback_first"
    )
    interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="iv-mixed, zigzag, fused: fraction of the steps, start to end, in which it is active",
    )
    image_guidance: tuple[Guidance, Guidance] = Field(
        default=(4.0, 4.0), description="iv-mixed, fused: guidance scale of the image model at the first and last step"
    )
    video_guidance: tuple[Guidance, Guidance] = Field(
        default=(4.0, 4.0), description="iv-mixed, fused: guidance scale of the video model at the first and last step"
    )
    rho: float = Field(
        default=7.0,
        gt=0,
        le=100,
        description="iv-mixed, fused: exponent of the guidance schedule between first and last step",
    )
    image_every: int = Field(
        default=1, ge=1, le=1000, description="iv-mixed: use the image model in every n-th step only"
    )
    goback_guidance: Guidance = Field(default=0.0, description="zigzag: guidance scale of the inversion")
    iterations: int = Field(default=3, ge=1, le=10, description="freeinit: number of full sampling runs")

    @field_validator("combination")
    @classmethod
    def _is_a_combination(cls, combination: str) -> str:
        if combination not in COMBINATIONS:
            raise ValueError(
                f"combination '{combination}' is not of the form IV-IV: one or two of I (image), V (video) and "
                "R (Gaussian noise), a dash, as many of I and V"
            )
        return combination

    @field_validator("order")
    @classmethod
    def _goes_with_the_combination(cls, order: str, info: ValidationInfo) -> str:
        combination = info.data.get("combination", "")
        if "R" in combination and order != "goback_first":
            raise ValueError(f"order '{order}' does not go with combination '{combination}'; use 'goback_first'")
        return order

    @field_validator("interval")
    @classmethod
    def _rises(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"interval {interval} must rise within 0..1")
        return interval

    @property
    def used(self) -> dict[str, object]:
        """The settings that the chosen sampler reads."""
        return self.model_dump(include=set(USES[self.name]))


class Spacing(FrozenModel):
    """Which of the timesteps a network was trained with a run visits; names and meaning are those of diffusers'
    scheduler configs, the defaults Stable Diffusion's."""

    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"
    steps_offset: int = Field(default=1, ge=0)
    set_alpha_to_one: bool = False
    num_train_timesteps: int = Field(default=1000, ge=1)

    def timesteps(self, steps: int) -> list[int]:
        """Noisiest first (arXiv:2305.08891 Table 2)."""
        count = self.num_train_timesteps
        match self.timestep_spacing:
            case "linspace":
                gap = (count - 1) / max(steps - 1, 1)
                ladder = [round(i * gap) for i in reversed(range(steps))]
            case "leading":
                ladder = [i * (count // steps) + self.steps_offset for i in reversed(range(steps))]
            case "trailing":
                gap = count - (count - count / steps)  # as numpy.arange rounds it
                ladder = [round(count - i * gap) - 1 for i in range(steps)]
        return [min(t, count - 1) for t in ladder]


def network_calls(sampler: SamplerSettings, steps: int, spacing: Spacing) -> dict[str, int]:
    """Calls of each network, two guidance halves counted as one."""
    return dict(_network_calls(sampler, steps, spacing))  # pyright: ignore[reportArgumentType]  # pydantic hashes what is frozen


@lru_cache(maxsize=1024)  # every poll shows them
def _network_calls(sampler: SamplerSettings, steps: int, spacing: Spacing) -> Mapping[str, int]:
    levels = [*spacing.timesteps(steps), 0]
    calls = Counter(model for model, src, dst in _moves(sampler, steps, spacing, levels) if src != dst)
    runs = sampler.iterations if sampler.name == "freeinit" else 1
    return {model: runs * calls[model] for model in ("image", "video")}


def _moves(sampler: SamplerSettings, steps: int, spacing: Spacing, levels: list[int]) -> Iterator[Move]:
    begin, end = (round(share * steps) for share in sampler.interval)
    active = range(begin, end)
    clean = CLEAN if spacing.set_alpha_to_one else 0
    if sampler.name == "iv-mixed":
        yield from _zigzags(sampler, steps, active, levels)
    for i in range(steps):
        src, dst = levels[i], clean if i == steps - 1 else levels[i + 1]
        if sampler.name == "zigzag" and i in active and i < steps - 1:
            yield "video", src, dst
            yield "video", dst, src
        if sampler.name == "fused" and i in active:
            yield "image", src, dst
        yield "video", src, dst


def _zigzags(sampler: SamplerSettings, steps: int, active: range, levels: list[int]) -> Iterator[Move]:
    """Both legs of every zig-zag go over the same levels, so it does not matter here which comes first."""
    goback, _, denoise = sampler.combination.partition("-")
    width = len(goback)
    denoise_first = sampler.order == "denoise_first"
    room = range(min(steps - 1, steps - width + 1)) if denoise_first else range(width, steps)
    for k, i in enumerate(i for i in active if i in room):
        away = [levels[i + n if denoise_first else i - n] for n in range(width + 1)]
        first, second = (denoise, goback) if denoise_first else (goback, denoise)
        for letters, path in ((first, away), (second, away[::-1])):
            for letter, src, dst in zip(letters, path, path[1:], strict=False):
                if letter in LETTERS:  # R is noise and calls nothing
                    yield LETTERS[letter] if k % sampler.image_every == 0 else "video", src, dst
