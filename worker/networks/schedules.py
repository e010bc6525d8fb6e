"""Loads the noise schedules of both networks: the scheduler's file, and over it what the entry names."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sampler import FlowSchedule, NoiseSchedule
from service.catalog.family_components import WAN, has_motion_adapter
from service.catalog.model_entry import ModelEntry
from service.catalog.scheduler_settings import (
    FLOW_SHIFT_KEYS,
    SCHEDULER_FILE,
    ScheduleOverrides,
    named_spacing,
)
from service.errors import ConfigurationError
from service.jobs.sampler_settings import Network
from worker.networks.component_files import component_folder, read_json

log = logging.getLogger("ivmix.child")

AnySchedule = NoiseSchedule | FlowSchedule


def load_schedules(entry: ModelEntry) -> tuple[NoiseSchedule, NoiseSchedule]:
    """(of the image model, of the video model). Raises ConfigurationError naming the schedule, its file and key."""
    image, video = (_load(entry, network) for network in ("image", "video"))
    if entry.num_inference_steps.max > len(video):
        raise ConfigurationError(
            f"model {entry.id}: num_inference_steps.max={entry.num_inference_steps.max} is above the {len(video)} "
            f"timesteps of {_file(entry, 'video')}; lower it"
        )
    return image, video


def load_schedule(entry: ModelEntry) -> AnySchedule:
    """Of a model with one network. Raises ConfigurationError as `load_schedules`."""
    if entry.family != WAN:
        return load_schedules(entry)[1]
    file = _file(entry, "video")
    config = read_json(file)
    if entry.flow_shift is not None:
        config |= dict.fromkeys(FLOW_SHIFT_KEYS, entry.flow_shift)
    try:
        return FlowSchedule.from_config(config)
    except (TypeError, ValueError) as e:
        raise ConfigurationError(f"model {entry.id}, noise levels from {file} and the entry: {e}") from e


def schedule_warnings(entry: ModelEntry) -> Iterator[str]:
    """What may be wrong with a schedule that can be loaded."""
    if entry.family == WAN:
        return
    for file in dict.fromkeys((_file(entry, "video"), _file(entry, "image"))):
        known = ScheduleOverrides.model_fields
        for key in read_json(file):
            is_known = key in known or key == "timestep_scaling"  # LCMScheduler's own
            if not is_known and (near := difflib.get_close_matches(key, known, 1, cutoff=0.85)):
                yield f"{file}: no scheduler reads {key}; probably {near[0]} is meant"
    if not has_motion_adapter(entry.family) or "beta_schedule" in entry.video_schedule:
        return
    found = read_json(_file(entry, "video")).get("beta_schedule", "linear")
    if found != "linear":
        yield (
            f"model {entry.id}: {_file(entry, 'video')} has beta_schedule {found}, but AnimateDiff's motion modules "
            'were trained with linear; add video_schedule = { beta_schedule = "linear" } to the entry, or name '
            f'"{found}" there if your motion adapter was trained with it'
        )


def _load(entry: ModelEntry, network: Network) -> NoiseSchedule:
    overrides = entry.image_schedule if network == "image" else entry.video_schedule
    file = _file(entry, network)
    config: dict[str, Any] = {**read_json(file), **overrides, **named_spacing(entry.spacing, overrides)}
    try:
        return NoiseSchedule.from_config(config)
    except (TypeError, ValueError) as e:
        raise ConfigurationError(
            f"model {entry.id}, schedule of the {network} model, from {file} and the entry: {e} "
            f"(a key under {network}_schedule in the entry replaces that of the file)"
        ) from e


def _file(entry: ModelEntry, network: Network) -> Path:
    components = entry.all_components
    name = "image_scheduler" if network == "image" and "image_scheduler" in components else "scheduler"
    return component_folder(components[name]) / SCHEDULER_FILE
