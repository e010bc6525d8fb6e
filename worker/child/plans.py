"""The plan of a generation: its sampler's settings on the noise schedules of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sampler import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    FlowSchedule,
    GuidanceRule,
    InvalidSetting,
    NoiseSchedule,
    Plan,
    ddim_plan,
    evs_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    official_plan,
    zigzag_plan,
)
from service.jobs.model import Generation
from service.jobs.reference import Reference, first_step
from service.jobs.released_loops import RELEASED, Family
from service.jobs.sampler_settings import RULE, Grid, Network, SamplerSettings, Solver
from service.jobs.timestep_spacing import FlowSpacing
from worker.networks.loading import AnyModels
from worker.networks.schedules import AnySchedule

OF_DENOISERS = frozenset({"image_frames"})  # settings that do not change the plan


def plan_of(generation: Generation, models: AnyModels) -> Plan:
    """What the sampler runs. Raises ValueError naming the sampler setting that cannot be run."""
    chosen = generation.sampler
    schedule = _spaced(models.video_schedule, generation)
    steps, guidance, used = generation.num_inference_steps, generation.guidance_scale, plan_settings(chosen)
    schedules: dict[Network, AnySchedule] = {
        "image": _spaced(models.image_schedule, generation),
        "video": schedule,
    }
    plain = partial(ddim_plan, schedule, steps, guidance=guidance)
    plans: dict[str, Callable[..., Plan]] = {
        "ddim": partial(_ddim, schedules, steps, guidance),
        "iv-mixed": partial(
            mixed_plan,
            schedule,
            steps,
            guidance=guidance,
            image_schedule=models.image_schedule,
            off_distribution=models.compresses_time,
        ),
        "fused": partial(fused_plan, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
        "zigzag": partial(zigzag_plan, schedule, steps, guidance=guidance),
        "evs": partial(_evs, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
        "freeinit": partial(_free_init, plain, schedule),
        "official": partial(_official, schedules, steps, guidance, family_of(generation, models)),
    }
    plan = plans[chosen.name](**used)
    reference = start_reference(generation)
    return plan if reference is None else _cut(plan, steps, reference.strength)


def start_reference(generation: Generation) -> Reference | None:
    """The picture or clip with whose noised latents the run begins; None: it begins with noise."""
    reference = generation.reference
    return reference if reference is not None and reference.use == "start" else None


def _cut(plan: Plan, steps: int, strength: float) -> Plan:
    """The share of the steps that `strength` lets run."""
    begin = first_step(steps, strength)
    if begin == steps:
        least = math.ceil(100 / steps) / 100
        raise InvalidSetting(f"strength={strength:g}: none of {steps} steps would run; raise it to {least:g}")
    return plan.starting_at(begin)


def plan_settings(sampler: SamplerSettings) -> dict[str, Any]:
    """The settings that the sampler uses, those of the guidance rule as one."""
    used = {name: value for name, value in sampler.used.items() if name not in RULE | OF_DENOISERS}
    return used | {"rule": _rule(sampler)} if set(sampler.used) & RULE else used


def _rule(sampler: SamplerSettings) -> GuidanceRule | None:
    match sampler.guidance_rule:
        case "cfg":
            return None
        case "apg":
            return AdaptiveProjectedGuidance(sampler.apg_eta, sampler.apg_norm_threshold, sampler.apg_momentum)
        case "cfg-zero":
            return CfgZeroStar(sampler.zero_init_steps)


def family_of(generation: Generation, models: AnyModels) -> Family:
    """The family whose code the generation runs."""
    return generation.official_family or models.entry.family


def _ddim(
    schedules: Mapping[Network, AnySchedule],
    steps: int,
    guidance: float,
    *,
    network: Network,
    grid: Grid,
    solver: Solver,
    rule: GuidanceRule | None,
) -> Plan:
    return ddim_plan(schedules[network], steps, guidance=guidance, model=network, grid=grid, solver=solver, rule=rule)


def _evs(
    schedule: AnySchedule, steps: int, *, image_step_guidance: float | None, enlarge: float | None, **settings: Any
) -> Plan:
    return evs_plan(schedule, steps, image_guidance=image_step_guidance, enlarge=enlarge or 1, **settings)


def _free_init(inner: Callable[[], Plan], schedule: AnySchedule, *, iterations: int) -> Plan:
    return free_init_plan(inner(), schedule, iterations)


def _official(
    schedules: Mapping[Network, AnySchedule],
    steps: int,
    guidance: float,
    family: Family,
    *,
    active_steps: tuple[int, int] | None,
    **settings: Any,
) -> Plan:
    """Both networks run on one schedule. AnimateDiff's is that of its base, an image model, not its motion modules'."""
    schedule = schedules["image" if family == "animatediff" else "video"]
    assert isinstance(schedule, NoiseSchedule), "nothing was released for flow models"
    used = {name: value for name, value in settings.items() if name not in RELEASED[family].ignored}
    return official_plan(family, schedule, steps, interval=active_steps, guidance=guidance, **used)


def _spaced(schedule: AnySchedule, generation: Generation) -> AnySchedule:
    """With the levels fixed when the job was created, even if the registry entry has changed since. As it is if the API
    had no files to know them from: then the schedule's own are right."""
    spacing = generation.spacing
    if spacing.is_estimate:
        return schedule
    if isinstance(schedule, FlowSchedule):
        return replace(schedule, shift=spacing.shift) if isinstance(spacing, FlowSpacing) else schedule
    return replace(schedule, **spacing.model_dump(include={"timestep_spacing", "steps_offset", "set_alpha_to_one"}))
