"""The plan of a generation: its sampler's settings on the noise schedules of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sampler import (
    InvalidSetting,
    NoiseSchedule,
    Plan,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    official_plan,
    zigzag_plan,
)
from service.jobs.model import Generation
from service.jobs.reference import Reference, first_step
from service.jobs.released_loops import RELEASED, Family
from service.jobs.sampler_settings import Grid, Network, Solver
from worker.networks.models import Models


def plan_of(generation: Generation, models: Models) -> Plan:
    """What the sampler runs. Raises ValueError naming the sampler setting that cannot be run."""
    chosen = generation.sampler
    schedule = replace(models.video_schedule, **_spacing(generation))
    steps, guidance, used = generation.num_inference_steps, generation.guidance_scale, chosen.used
    schedules: dict[Network, NoiseSchedule] = {
        "image": replace(models.image_schedule, **_spacing(generation)),
        "video": schedule,
    }
    plain = partial(ddim_plan, schedule, steps, guidance=guidance)
    plans: dict[str, Callable[..., Plan]] = {
        "ddim": partial(_ddim, schedules, steps, guidance),
        "iv-mixed": partial(mixed_plan, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
        "fused": partial(fused_plan, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
        "zigzag": partial(zigzag_plan, schedule, steps, guidance=guidance),
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


def family_of(generation: Generation, models: Models) -> Family:
    """The family whose code the generation runs."""
    return generation.official_family or models.entry.family


def _ddim(
    schedules: Mapping[Network, NoiseSchedule],
    steps: int,
    guidance: float,
    *,
    network: Network,
    grid: Grid,
    solver: Solver,
) -> Plan:
    return ddim_plan(schedules[network], steps, guidance=guidance, model=network, grid=grid, solver=solver)


def _free_init(inner: Callable[[], Plan], schedule: NoiseSchedule, *, iterations: int) -> Plan:
    return free_init_plan(inner(), schedule, iterations)


def _official(
    schedules: Mapping[Network, NoiseSchedule],
    steps: int,
    guidance: float,
    family: Family,
    *,
    active_steps: tuple[int, int] | None,
    **settings: Any,
) -> Plan:
    """Both networks run on one schedule. AnimateDiff's is that of its base, an image model, not its motion modules'."""
    schedule = schedules["image" if family == "animatediff" else "video"]
    used = {name: value for name, value in settings.items() if name not in RELEASED[family].ignored}
    return official_plan(family, schedule, steps, interval=active_steps, guidance=guidance, **used)


def _spacing(generation: Generation) -> dict[str, Any]:
    """The time steps fixed when the job was created, even if the registry entry has changed since; none if the API had
    no files to know them from: then the schedule's own are right."""
    fixed = {"timestep_spacing", "steps_offset", "set_alpha_to_one"}
    return {} if generation.spacing.is_estimate else generation.spacing.model_dump(include=fixed)
