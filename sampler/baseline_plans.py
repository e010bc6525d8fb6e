"""Samplers that IV-Mixed is compared with: DDIM with one of the models, Z-Sampling and the fused step."""

from __future__ import annotations

from typing import Literal, get_args

from sampler.denoise_and_goback_moves import AnyMove, ConsistencyMove, FusedMove, ModelName, Move, ZeroVelocity
from sampler.errors import InvalidSetting
from sampler.guidance_rules import GuidanceRule, Scale, with_rule
from sampler.level_grid import LevelGrid, Solver
from sampler.noise_schedule import noise_schedule
from sampler.plan import Plan
from sampler.schedule import Schedule
from sampler.validation import Guidance, Range, active_steps, finite_number, guidance_ramps, one_of

Grid = Literal["adjacent", "diffusers"]


def ddim_plan(
    schedule: Schedule,
    steps: int = 50,
    *,
    guidance: float = 7.5,
    model: ModelName = "video",
    grid: Grid = "adjacent",
    solver: Solver | Literal["lcm"] = "ddim",
    rule: GuidanceRule | None = None,
) -> Plan:
    """One model alone, one call a step: DDIM (arXiv:2010.02502 Eq. 12, eta = 0), DPM-Solver++ 2M, or LCM.

    Args:
        schedule: noise schedule of that model.
        steps: from 1 to the number of timesteps in `schedule`.
        guidance: classifier-free guidance scale of that model; any finite number.
        model: "video", or "image": every frame by itself. From independent noise the frames then share only the prompt.
        grid: where a step ends. "adjacent": at the next timestep of the run. "diffusers": `len(schedule) // steps`
            timesteps lower, as diffusers' DDIMScheduler does; the same for "leading", and for "trailing" where `steps`
            divides the timesteps, but not for "linspace", where each step overlaps the next or leaves a gap.
        solver: "ddim"; "dpmpp-2m", which needs about half the steps for the same picture (arXiv:2211.01095 Alg. 2); or
            "lcm", for latent consistency models, which draws noise in all steps but the last, on timesteps of its own
            (arXiv:2310.04378 Alg. 3). The last two with grid "adjacent" only.
        rule: of guidance, with `guidance` as its scale; not with "lcm". None: classifier-free guidance.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """
    _check_choices(guidance, model, grid, solver, rule)
    if solver == "lcm":
        return _consistency_plan(schedule, steps, guidance, model)
    levels = LevelGrid(schedule, steps, solver=solver, rule=rule)
    if grid == "diffusers":
        return _strided_plan(schedule, levels, with_rule(guidance, rule), model)
    return Plan(tuple((levels.ordinary_step(i, guidance, model),) for i in range(levels.steps)))


def _check_choices(
    guidance: float, model: ModelName, grid: Grid, solver: Solver | Literal["lcm"], rule: GuidanceRule | None
) -> None:
    finite_number("guidance", guidance)
    one_of("model", model, get_args(ModelName))
    one_of("grid", grid, get_args(Grid))
    one_of("solver", solver, (*get_args(Solver), "lcm"))
    if grid == "diffusers" and solver != "ddim":
        raise InvalidSetting(f"solver={solver!r} does not work with grid='diffusers', which is DDIM's; leave grid out")
    if rule is not None and solver == "lcm":
        raise InvalidSetting(f"rule={rule} does not work with solver='lcm', whose networks have learnt their guidance")


def _strided_plan(schedule: Schedule, levels: LevelGrid, guidance: Scale, model: ModelName) -> Plan:
    """DDIM as in diffusers: every step ends the same number of timesteps lower."""
    betas = noise_schedule("schedule", schedule, "grid='diffusers' is that of DDIMScheduler; leave grid out")
    timesteps, alphas = betas.timesteps(levels.steps), betas.alphas_cumprod
    stride = len(betas) // levels.steps

    def move(i: int, t: int) -> Move | ZeroVelocity:
        below = alphas[t - stride] if t >= stride else betas.final_alpha
        return ZeroVelocity(alphas[t], below) if i < levels.zero_steps else Move(model, t, alphas[t], below, guidance)

    return Plan(tuple((move(i, t),) for i, t in enumerate(timesteps)))


def _consistency_plan(schedule: Schedule, steps: int, guidance: float, model: ModelName) -> Plan:
    betas = noise_schedule("schedule", schedule, "solver='lcm' is of latent consistency models, distilled at timesteps")
    timesteps = betas.consistency_timesteps(steps)
    alphas = [*(betas.alphas_cumprod[t] for t in timesteps), 1.0]
    levels = zip(timesteps, alphas, alphas[1:], strict=False)
    return Plan(tuple((ConsistencyMove(model, t, src, dst, guidance),) for t, src, dst in levels))


def zigzag_plan(
    schedule: Schedule,
    steps: int = 50,
    *,
    guidance: float = 5.5,
    goback_guidance: float = 0.0,
    interval: Range = (0.0, 1.0),
) -> Plan:
    """Z-Sampling (arXiv:2412.10891) with the video model: denoise, go back, denoise again; 3 calls a step.

    Args:
        schedule: noise schedule of the video model.
        steps: from 1 to the number of timesteps in `schedule`.
        guidance: scale of the denoising moves; the default is the paper's.
        goback_guidance: scale of the go-back move, used with its sign as given (`mixed_plan` negates its scales).
            The gap between the two scales is what the method adds.
        interval: the part of the run with zig-zags, as two fractions of the steps. The last step never has one:
            below it is only the clean end.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """
    grid = LevelGrid(schedule, steps)
    finite_number("guidance", guidance)
    finite_number("goback_guidance", goback_guidance)
    active = active_steps(interval, grid.steps)

    def moves(i: int) -> tuple[AnyMove, ...]:
        ordinary = grid.ordinary_step(i, guidance)
        if i not in active or i == grid.steps - 1:
            return (ordinary,)
        return grid.move("video", i, i + 1, guidance), grid.move("video", i + 1, i, goback_guidance), ordinary

    return Plan(tuple(moves(i) for i in range(grid.steps)))


def fused_plan(
    schedule: Schedule,
    steps: int = 50,
    *,
    interval: Range = (0.0, 1.0),
    image_guidance: Guidance = (4, 4),
    video_guidance: Guidance = (4, 4),
    rho: float = 7.0,
    guidance: float = 7.5,
    image_schedule: Schedule | None = None,
) -> Plan:
    """Experimental, not in the paper: the first-order effect of an IV-IV zig-zag in 2 calls a step instead of 5.

    eps = eps_u^V + (guidance + 2 video_guidance) d^V + 2 image_guidance d^I, with d = eps_c - eps_u of each model,
    because a zig-zag applies each guidance twice. It overshoots more than the zig-zag.

    Args: as in `mixed_plan`.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """
    grid = LevelGrid(schedule, steps, image_schedule)
    active = active_steps(interval, grid.steps)
    finite_number("guidance", guidance)
    image, video = guidance_ramps(image_guidance, video_guidance, rho, grid.steps)

    def fused(i: int) -> FusedMove:
        parts = (
            grid.call("video", i, guidance + 2 * video[i]),
            grid.call("image", i, 2 * image[i], uncond=0.0),
        )
        return FusedMove(parts, grid.alphas[i], grid.alpha_after(i))

    return Plan(tuple((fused(i) if i in active else grid.ordinary_step(i, guidance),) for i in range(grid.steps)))
