"""Scheduler settings that an entry names, and those of a model's scheduler_config.json; read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import ConfigDict, Field, ValidationError

from service.catalog.weight_files import Component
from service.frozen_model import FrozenModel
from service.jobs.timestep_spacing import FlowSpacing, Spacing
from service.validation_messages import invalid_value, unknown_parameter

SCHEDULER_FILE = "scheduler_config.json"
# What diffusers' DDIMScheduler does where its config lacks a key; the sampler's `RUN` and `TRAINING` say the same.
DDIM_SPACING = Spacing(timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True, num_train_timesteps=1000)
SPACING_KEYS = ("timestep_spacing", "steps_offset", "set_alpha_to_one", "num_train_timesteps")
# diffusers' names of the shift: that of FlowMatchEulerDiscreteScheduler, and that of UniPC and DPM-Solver. A config
# that was made from one of another class has both, and its class reads its own.
FLOW_SHIFT_KEYS = ("shift", "flow_shift")


class ScheduleOverrides(FrozenModel):
    """The keys of a scheduler's config that `video_schedule` and `image_schedule` may replace, and their values."""

    model_config = ConfigDict(strict=True)

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    trained_betas: list[float] | None = None
    num_train_timesteps: int = Field(default=1000, ge=1)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"
    steps_offset: int = Field(default=0, ge=0)
    set_alpha_to_one: bool = True
    # Only to switch off what the file switches on.
    clip_sample: Literal[False] = False
    thresholding: Literal[False] = False
    rescale_betas_zero_snr: Literal[False] = False
    use_flow_sigmas: Literal[False] = False


def check_overrides(field: str, overrides: Mapping[str, Any]) -> None:
    """Raises ValueError: a sentence about the first key that is unknown or has an impossible value."""
    try:
        ScheduleOverrides.model_validate(dict(overrides))
    except ValidationError as e:
        error = e.errors()[0]
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            known = ", ".join(ScheduleOverrides.model_fields)
            raise ValueError(
                f"{unknown_parameter(name, ScheduleOverrides.model_fields, kind=f'key of {field}')} It takes {known}."
            ) from e
        raise ValueError(invalid_value(f"{field}.{name}", error)) from e


def named_spacing(spacing: Spacing, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The spacing keys that an entry names for one network: those of that network win over those for both."""
    named = spacing.model_dump(include=spacing.model_fields_set & set(SPACING_KEYS))
    return named | {key: overrides[key] for key in SPACING_KEYS if key in overrides}


def run_spacing(named: Mapping[str, Any], scheduler: Component) -> Spacing:
    """The spacing of a run: what the entry names, then what the scheduler's file says, then DDIM's defaults.

    Without the file on this machine, or if it cannot be read: with Stable Diffusion's defaults, as an estimate.
    """
    is_estimate = any(key not in named for key in SPACING_KEYS)
    estimate = Spacing.model_validate({**named, "is_estimate": is_estimate})
    stored = _read(scheduler) if is_estimate else None
    if stored is None:
        return estimate
    known = {key: stored[key] for key in SPACING_KEYS if key in stored}
    try:
        return Spacing.model_validate({**DDIM_SPACING.model_dump(), **known, **named})
    except ValueError:  # `ivmix models verify` and the worker say what is wrong in the file
        return estimate


def flow_spacing(named: float | None, scheduler: Component) -> FlowSpacing:
    """The levels of a run of a flow-matching model: with the shift that the entry names, else that of the file.

    Without the file on this machine, or if it cannot be read: with the shift of no file, as an estimate.
    """
    if named is not None:
        return FlowSpacing(shift=named)
    stored = _read(scheduler)
    if stored is None:
        return FlowSpacing(shift=1.0, is_estimate=True)
    is_euler = stored.get("_class_name") == "FlowMatchEulerDiscreteScheduler"
    try:
        return FlowSpacing(shift=stored.get("shift" if is_euler else "flow_shift", 1.0))
    except ValueError:  # as in `run_spacing`
        return FlowSpacing(shift=1.0, is_estimate=True)


def _read(scheduler: Component) -> dict[str, Any] | None:
    try:
        found = None if scheduler.path is None else json.loads((scheduler.path / SCHEDULER_FILE).read_text())
    except (OSError, ValueError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None
