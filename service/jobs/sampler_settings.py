"""The sampler settings that a client may change."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from service.frozen_model import FrozenModel

Guidance = Annotated[float, Field(ge=0, le=100)]  # classifier-free guidance scale
Network = Literal["image", "video"]
Grid = Literal["adjacent", "diffusers"]
Solver = Literal["ddim", "dpmpp-2m", "lcm"]
GuidanceRule = Literal["cfg", "apg", "cfg-zero"]
StepIndex = Annotated[int, Field(ge=0, le=100_000)]

# Settings that only one rule of guidance reads.
RULE_SETTINGS: dict[GuidanceRule, frozenset[str]] = {
    "cfg": frozenset(),
    "apg": frozenset({"apg_eta", "apg_norm_threshold", "apg_momentum"}),
    "cfg-zero": frozenset({"zero_init_steps"}),
}
RULE = frozenset({"guidance_rule"}).union(*RULE_SETTINGS.values())

# Settings that each sampler uses, in addition to num_inference_steps and guidance_scale.
USES: dict[str, frozenset[str]] = {
    "iv-mixed": frozenset(
        {"combination", "order", "image_every", "solver"}
        | {"interval", "image_guidance", "video_guidance", "rho", "interval_guidance"}
        | RULE
    ),
    "ddim": frozenset({"network", "grid", "solver"}) | RULE,
    "zigzag": frozenset({"interval", "goback_guidance"}),
    "freeinit": frozenset({"iterations"}),
    "fused": frozenset({"interval", "image_guidance", "video_guidance", "rho", "image_frames"}),
    "evs": frozenset({"image_interval", "image_every", "enlarge", "image_step_guidance"}),
    "official": frozenset({"active_steps", "zz", "image_guidance", "video_guidance", "rho"}),
}

# One or two letters before the dash and as many after it. Only the inversion, before the dash, can use R.
COMBINATIONS = tuple(
    f"{''.join(goback)}-{''.join(denoise)}"
    for width in (1, 2)
    for goback in product("IVR", repeat=width)
    for denoise in product("IV", repeat=width)
)


class SamplerSettings(FrozenModel):
    """Sampler and its settings. `iv-mixed` is the IV-Mixed Sampler (arXiv:2410.04171), `ddim` uses only the video
    model, or with `network` "image" only the image model, `zigzag` is Z-Sampling, `freeinit` is FreeInit around `ddim`,
    `fused` is experimental, `evs` lets both models make a part of the steps (arXiv:2507.13753), `official` is the
    paper's released code for the model's family, with its settings unless others are given. A setting that the sampler
    does not use can only have the model's value."""

    name: Literal["iv-mixed", "ddim", "zigzag", "freeinit", "fused", "evs", "official"] = "iv-mixed"
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
        default=(4.0, 4.0),
        description="iv-mixed, fused, AnimateDiff's official: guidance scale of the image model at the first and last "
        "step",
    )
    video_guidance: tuple[Guidance, Guidance] = Field(
        default=(4.0, 4.0),
        description="iv-mixed, fused, AnimateDiff's official: guidance scale of the video model at the first and last "
        "step",
    )
    rho: float = Field(
        default=7.0,
        gt=0,
        le=100,
        description="iv-mixed, fused, AnimateDiff's official: exponent of the guidance schedule between first and last "
        "step",
    )
    image_every: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="iv-mixed, evs: use the image model in every n-th step of its interval only",
    )
    interval_guidance: Guidance | None = Field(
        default=None,
        exclude_if=lambda interval_guidance: interval_guidance is None,
        description="iv-mixed: guidance scale of the video model's ordinary steps in `interval`, where the image model "
        "guides too; outside it, `guidance_scale`. Default: `guidance_scale` everywhere",
    )
    goback_guidance: Guidance = Field(default=0.0, description="zigzag: guidance scale of the inversion")
    iterations: int = Field(default=3, ge=1, le=10, description="freeinit: number of full sampling runs")
    # Left out of records where it says nothing new: workers of older versions refuse fields that they do not know, and
    # the fingerprints of older checkpoints hash the settings.
    network: Network = Field(
        default="video",
        exclude_if=lambda network: network == "video",
        description="ddim: the only network that is called; image draws every frame by itself, without motion. "
        "`guidance_scale` is that of this network. Responses leave out the default",
    )
    grid: Grid = Field(
        default="adjacent",
        exclude_if=lambda grid: grid == "adjacent",
        description="ddim: where a step ends: at the next timestep of the run, or as in diffusers' DDIMScheduler "
        "num_train_timesteps // num_inference_steps lower. They differ with timestep_spacing linspace, and with "
        "trailing where the steps do not divide the timesteps. Responses leave out the default",
    )
    solver: Solver = Field(
        default="ddim",
        exclude_if=lambda solver: solver == "ddim",
        description="ddim, iv-mixed: how the ordinary steps are made: dpmpp-2m, DPM-Solver++ 2M, needs about half the "
        "steps of ddim for the same picture. ddim only: lcm, for models distilled to latent consistency models. Not "
        "with grid diffusers. Responses leave out the default",
    )
    guidance_rule: GuidanceRule = Field(
        default="cfg",
        exclude_if=lambda rule: rule == "cfg",
        description="ddim, and the ordinary steps of iv-mixed: what a guidance scale means: cfg, classifier-free "
        "guidance; apg, adaptive projected guidance (arXiv:2410.02416); cfg-zero, CFG-Zero* (arXiv:2503.18886). "
        "Responses leave out the default",
    )
    apg_eta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        exclude_if=lambda eta: eta == 0,
        description="guidance_rule apg: share that stays of the guidance along the prompt's own prediction. "
        "Responses leave out the default",
    )
    apg_norm_threshold: float = Field(
        default=15.0,
        ge=0,
        le=1e6,
        exclude_if=lambda threshold: threshold == 15,
        description="guidance_rule apg: greatest length of the guidance of one frame, in latents; 0: no limit. "
        "Responses leave out the default",
    )
    apg_momentum: float = Field(
        default=-0.5,
        gt=-1,
        lt=1,
        exclude_if=lambda momentum: momentum == -0.5,
        description="guidance_rule apg: weight of the guidance of the steps before. Responses leave out the default",
    )
    zero_init_steps: int = Field(
        default=1,
        ge=0,
        le=100_000,
        exclude_if=lambda steps: steps == 1,
        description="guidance_rule cfg-zero: steps at the start with velocity 0, which call no network; less than "
        "num_inference_steps. Responses leave out the default",
    )
    image_frames: Literal["all", "first"] = Field(
        default="all",
        exclude_if=lambda frames: frames == "all",
        description="fused, family wan only: the latent frames that the image model adds to; only the first is a "
        "picture, the others are four frames each. Responses leave out the default",
    )
    image_interval: tuple[float, float] = Field(
        default=(0.5, 1.0),
        exclude_if=lambda interval: interval == (0.5, 1.0),
        description="evs: fraction of the steps, start to end, that the image model makes; the first step is always "
        "the video model's. Responses leave out the default",
    )
    enlarge: float | None = Field(
        default=None,
        ge=1,
        le=4,
        exclude_if=lambda enlarge: enlarge is None,
        description="evs: how much wider and higher the latents are while the image model works on them. Default: the "
        "model's image_enlarge",
    )
    image_step_guidance: Guidance | None = Field(
        default=None,
        exclude_if=lambda guidance: guidance is None,
        description="evs: guidance scale of the image model's steps. Default: image_guidance_scale of the model, else "
        "guidance_scale",
    )
    active_steps: tuple[StepIndex, StepIndex] | None = Field(
        default=None,
        exclude_if=lambda active_steps: active_steps is None,
        description="official: first and last step with a zig-zag, counted from 0, both included; last before first: "
        "none. Default: [0, 49], VideoCrafter [0, 60]",
    )
    zz: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        exclude_if=lambda zz: zz is None,
        description="official, not ModelScope's: in every zz-th step the video model replaces the image model. "
        "Default: 1000, VideoCrafter 3",
    )

    @field_validator("combination")
    @classmethod
    def _is_a_combination(cls, combination: str) -> str:
        if combination not in COMBINATIONS:
            raise ValueError(
                f"combination '{combination}' is not of the form IV-IV: one or two letters I (image), V (video) or "
                "R (Gaussian noise), a dash, then as many letters I or V"
            )
        return combination

    @field_validator("order")
    @classmethod
    def _fits_the_combination(cls, order: str, info: ValidationInfo) -> str:
        combination = info.data.get("combination", "")
        if "R" in combination and order != "goback_first":
            raise ValueError(f"order '{order}' does not work with combination '{combination}'; use 'goback_first'")
        return order

    @field_validator("interval", "image_interval")
    @classmethod
    def _is_ordered(cls, interval: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"{info.field_name} {interval} must be [start, end] with 0 <= start <= end <= 1")
        return interval

    @field_validator("solver")
    @classmethod
    def _fits_the_sampler(cls, solver: str, info: ValidationInfo) -> str:
        if solver != "ddim" and info.data.get("grid") == "diffusers":
            raise ValueError(f"solver '{solver}' does not work with grid 'diffusers', which is DDIM's; use 'adjacent'")
        if solver == "lcm" and info.data.get("name") == "iv-mixed":
            raise ValueError(
                "solver 'lcm' does not work with sampler 'iv-mixed': each of its steps draws new noise, so nothing can "
                "go back; use solver 'ddim' or sampler 'ddim'"
            )
        return solver

    @field_validator("guidance_rule")
    @classmethod
    def _fits_the_solver(cls, rule: str, info: ValidationInfo) -> str:
        if rule != "cfg" and (info.data.get("name"), info.data.get("solver")) == ("ddim", "lcm"):
            raise ValueError(
                f"guidance_rule '{rule}' does not work with solver 'lcm', whose networks have learnt their guidance; "
                "leave guidance_rule out, or use solver 'ddim'"
            )
        return rule

    def with_evs_defaults(self, image_step_guidance: float | None, enlarge: float) -> Self:
        """With what EVS's settings are where the request leaves them out; other samplers stay as they are."""
        defaults = {"image_step_guidance": image_step_guidance, "enlarge": enlarge}
        left_out = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update=left_out) if self.name == "evs" else self

    @property
    def is_image_alone(self) -> bool:
        return (self.name, self.network) == ("ddim", "image")

    @property
    def used(self) -> dict[str, object]:
        """Values of the settings that the chosen sampler uses."""
        return {name: getattr(self, name) for name in USES[self.name]}
