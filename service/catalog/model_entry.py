"""A model of the registry: its components, limits and defaults. Resolves a request into a Generation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from service.catalog.adapters import Lora
from service.catalog.bounds import Range
from service.catalog.cache_choice import add_cache
from service.catalog.cost_limit import check_cost
from service.catalog.distilled import check_distilled, check_lcm_steps
from service.catalog.family_components import (
    LORA,
    OPTIONAL_COMPONENTS,
    REQUIRED_COMPONENTS,
    SDXL,
    SECOND_EXPERT,
    SPARSE_CONTROL,
    WAN,
    frames_per_latent,
    is_transformer,
)
from service.catalog.frame_size import choose_size
from service.catalog.invalid_parameter import invalid_parameter
from service.catalog.network_options import NetworkOptions
from service.catalog.num_frames import resolve_num_frames
from service.catalog.prompt_limits import NAME, PromptLimits
from service.catalog.reference_choice import KeepsBy, add_reference
from service.catalog.sampler_choice import check_zero_init, choose_sampler, settings_of
from service.catalog.scheduler_settings import check_overrides, flow_spacing, named_spacing, run_spacing
from service.catalog.selectable_loras import SelectableLoras, choose_loras
from service.catalog.text_layers import check_clip_skip, most_clip_skip
from service.catalog.transformer_limits import (
    COMBINATION,
    check_transformer_entry,
    check_transformer_request,
    check_transformer_sampler,
    experimental_samplers,
    samplers_of,
    with_family_defaults,
)
from service.catalog.weight_files import Component
from service.catalog.window_checks import check_windows
from service.errors import InvalidParameter
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from service.jobs.reference import ReferenceFile
from service.jobs.released_loops import RELEASED
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import COMBINATIONS, Network, SamplerSettings
from service.jobs.timestep_spacing import AnySpacing, Spacing


class ModelEntry(NetworkOptions, PromptLimits):
    aliases: tuple[Annotated[str, Field(pattern=NAME)], ...] = Field(
        default=(), description="other names that requests may use, such as sora-2"
    )
    path: Path | None = Field(default=None, description="folder with the components that `components` does not name")
    components: dict[str, Component] = {}
    created: int
    description: str
    licence: str = Field(description="of the weights; shown, not enforced")
    spacing: Spacing = Field(
        default=Spacing(), description="what it names overrides the configs of scheduler and image_scheduler"
    )
    video_schedule: dict[str, JsonValue] = Field(default={}, description="overrides of the scheduler's config")
    image_schedule: dict[str, JsonValue] = Field(default={}, description="overrides of the image_scheduler's config")
    lora_scale: float = Field(default=1.0, description="of components.lora, for the image model")
    loras: tuple[Lora, ...] = ()
    selectable_loras: SelectableLoras = Field(default=(), description="LoRAs that requests may choose")
    flow_shift: float | None = Field(
        default=None, gt=0, le=100, description="wan: how far the noise levels of a run are moved towards noise"
    )
    boundary_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="wan with transformer_2: the level s below which that network is called"
    )
    context_windows: ContextWindows | None = Field(
        default=None, description="for clips longer than the motion modules take; default: num_frames ends there"
    )
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
    image_enlarge: float = Field(
        default=2.0, ge=1, le=4, description="default enlarge of evs: how much larger than a clip its image model draws"
    )
    distilled: bool = Field(
        default=False, description="whether the video model was trained to need few steps and no guidance"
    )
    max_cost: float | None = Field(default=None, gt=0, description="limit of network calls x pixels x frames of a clip")
    negative_prompt: str = ""
    clip_skip: int = Field(default=0, ge=0, description="default; 1 reads the text encoders' last layer but one")
    force_zeros_for_empty_prompt: bool = Field(default=True, description="SDXL: zeros stand for no negative prompt")
    sampler: SamplerSettings = SamplerSettings()
    examples: tuple[str, ...] = Field(default=(), description="prompts that pages offer")

    image_conditioning: Literal["channels", "tokens"] | None = Field(
        default=None, description="wan: how an image-to-video model is given its first frame; default: it is not"
    )

    @model_validator(mode="before")
    @classmethod
    def _add_family_defaults(cls, raw: object) -> object:
        return with_family_defaults(cast("dict[str, Any]", raw)) if isinstance(raw, dict) else raw

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
        check_windows(self.family, self.context_windows)
        if is_transformer(self.family):
            reads_clip = self.clip_skip > 0 or self.prompt_chunks > 1 or self.prompt_weighting
            loras = (*self.all_loras, *self.selectable_loras)
            check_transformer_entry(self.num_frames, self.family, loras, self.textual_inversions, reads_clip=reads_clip)
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
        files = (adapter.file for adapter in (*self.loras, *self.textual_inversions, *self.selectable_loras))
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
    def has_sparse_control(self) -> bool:
        """Whether the video model can keep a given first frame."""
        return SPARSE_CONTROL in self.all_components

    @property
    def missing(self) -> list[str]:
        """Names of the components that are not on this machine."""
        return [name for name, component in self.all_components.items() if not component.is_available]

    @property
    def keeps_first_frame_by(self) -> KeepsBy | None:
        """How the video model can keep a given first frame."""
        return "sparse_control" if self.has_sparse_control else self.image_conditioning

    @property
    def has_second_expert(self) -> bool:
        """Whether another network makes the part of a run with little noise."""
        return SECOND_EXPERT in self.all_components

    def spacing_of(self, network: Network) -> AnySpacing:
        """The noise levels of a run on the schedule of one network."""
        if self.family == WAN:
            return flow_spacing(self.flow_shift, self.all_components["scheduler"])
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
        width, height = map(int, self.sizes[0].split("x"))
        picture = ReferenceFile(sha256="0" * 64, media_type="image/png", width=width, height=height)
        reference = picture if self.image_conditioning == "channels" else None
        return self.resolve(VideoRequest(prompt=min(words), seed=0, input_reference=reference))

    def resolve(self, request: VideoRequest) -> Generation:
        """Fill in the defaults of this model. Raises InvalidParameter for anything it cannot do."""
        sampler = self._sampler(request.sampler or {})
        self._check_can_run(request, sampler)
        spacing = self.spacing_of(self._network_of(sampler))
        negative_prompt = request.negative_prompt
        if negative_prompt is None:
            negative_prompt = "" if sampler.name == "official" else self.negative_prompt
        self.check_text("prompt", request.prompt)
        self.check_text("negative_prompt", negative_prompt)
        width, height = choose_size(request, self.sizes)
        fps = int(self.fps.resolve("fps", request.fps))
        num_frames = resolve_num_frames(request, self.num_frames, self.fps, fps, frames_per_latent(self.family))
        generation = Generation(
            model=self.id,
            prompt=request.prompt,
            negative_prompt=negative_prompt,
            # 32 bits: a JavaScript client can send the number back without rounding it
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            width=width,
            height=height,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=self._num_inference_steps(request, sampler, spacing),
            guidance_scale=self._guidance_scale(request, sampler),
            sampler=sampler,
            spacing=spacing,
            official_family=self.family if sampler.name == "official" else None,
            loras=choose_loras(request.loras, self.selectable_loras, self.id),
            clip_skip=self._clip_skip(request, sampler),
            prompt_chunks=self.prompt_chunks,
            prompt_weighting=self.prompt_weighting,
            context_windows=self.windows_for(num_frames),
            quantise=self.quantise,
        )
        generation = add_cache(generation, request.cache, possible=self.possible_caches, components=self.all_components)
        generation = add_reference(generation, request, keeps=self.keeps_first_frame_by, family=self.family)
        check_cost(generation, self.max_cost, self._levers)
        return generation

    def _check_can_run(self, request: VideoRequest, sampler: SamplerSettings) -> None:
        if is_transformer(self.family):
            check_transformer_request(self.id, request)
            check_transformer_sampler(self.id, self.family, sampler, self.samplers, distilled=self.distilled)
        if self.distilled:
            check_distilled(self.id, sampler)

    def windows_for(self, num_frames: int) -> ContextWindows | None:
        """None if one window holds the clip, or the model has no windows."""
        windows = self.context_windows
        return windows if windows is not None and num_frames > windows.length else None

    @property
    def sampler_settings(self) -> dict[str, list[str]]:
        """Names of the settings that each sampler reads for this model."""
        return {sampler: sorted(settings_of(sampler, self.family)) for sampler in self.samplers}

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that the model can run, or refuses with a better reason than being unknown."""
        return samplers_of(self.family, self.image_conditioning, distilled=self.distilled)

    @property
    def experimental(self) -> tuple[str, ...]:
        """Those that nothing shows to help here."""
        of_family = experimental_samplers(self.family, self.image_conditioning, distilled=self.distilled)
        return of_family or (*(name for name in self.samplers if name == "fused"),)

    @property
    def combinations(self) -> tuple[str, ...]:
        """Values of `combination` that the model takes."""
        return (COMBINATION,) if is_transformer(self.family) else COMBINATIONS

    def _num_inference_steps(self, request: VideoRequest, sampler: SamplerSettings, spacing: AnySpacing) -> int:
        steps = int(self.num_inference_steps.resolve("num_inference_steps", request.num_inference_steps))
        if sampler.name == "official":
            most = RELEASED[self.family].most_steps(spacing.num_train_timesteps)
            if steps > most:
                message = f"num_inference_steps={steps}: the released {self.family} code takes at most {most} here."
                raise InvalidParameter("num_inference_steps", message)
        check_lcm_steps(sampler, steps)
        if not spacing.is_estimate and steps > spacing.num_train_timesteps:
            message = f"num_inference_steps={steps} is above the network's {spacing.num_train_timesteps} timesteps."
            raise InvalidParameter("num_inference_steps", message)
        check_zero_init(sampler, steps)
        return steps

    def _guidance_scale(self, request: VideoRequest, sampler: SamplerSettings) -> float:
        """An image network by itself is at its best with another guidance than one that a video network corrects."""
        wanted = request.guidance_scale
        if wanted is None and sampler.is_image_alone:
            wanted = self.image_guidance_scale
        return self.guidance_scale.resolve("guidance_scale", wanted)

    def _clip_skip(self, request: VideoRequest, sampler: SamplerSettings) -> int:
        """The released code has none, so that it is what `official` runs by default."""
        default = 0 if sampler.name == "official" else self.clip_skip
        clip_skip = default if request.clip_skip is None else request.clip_skip
        if clip_skip:
            check_clip_skip(clip_skip, most_clip_skip(self.all_components, is_sdxl=self.family == SDXL))
        return clip_skip

    def _sampler(self, changes: Mapping[str, Any]) -> SamplerSettings:
        try:
            chosen = choose_sampler(self.sampler, self.family, changes)
        except ValidationError as e:
            known = [f"sampler.{name}" for name in SamplerSettings.model_fields]
            raise invalid_parameter(e, within="sampler", known=known) from e
        return chosen.with_evs_defaults(self.image_guidance_scale, self.image_enlarge)

    @property
    def _levers(self) -> dict[str, dict[str, Any]]:
        width, height = min((tuple(map(int, size.split("x"))) for size in self.sizes), key=lambda wh: wh[0] * wh[1])
        return {
            "num_inference_steps": {"num_inference_steps": int(self.num_inference_steps.default)},
            "num_frames": {"num_frames": int(self.num_frames.default)},
            "size": {"width": width, "height": height},
            "sampler": {"sampler": self.sampler},
        }
