"""Loads the noise schedule of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampler import NoiseSchedule
from service.catalog.weight_files import Component
from service.errors import ConfigurationError
from service.jobs.timestep_spacing import Spacing
from worker.networks.component_files import component_folder, read_json


def load_schedule(component: Component, overrides: Mapping[str, Any], spacing: Spacing) -> NoiseSchedule:
    """The scheduler's config with the overrides of the model entry. Raises ConfigurationError."""
    file = component_folder(component) / "scheduler_config.json"
    config = {**read_json(file), **overrides, **spacing.model_dump()}
    try:
        return NoiseSchedule.from_config(config)
    except ValueError as e:
        raise ConfigurationError(f"{file}, with the overrides of the model entry: {e}") from e
