"""Reads the diffusers scheduler config of a flow model: which keys count, their defaults, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sampler.errors import InvalidSetting
from sampler.validation import config_mapping, finite_number, one_of, whole_number

EULER = "FlowMatchEulerDiscreteScheduler"
# Spacing of each class that serves flow models.
SPACINGS = {EULER: "euler", "UniPCMultistepScheduler": "unipc", "DPMSolverMultistepScheduler": "dpmsolver"}

# A dynamic shift: mu is a straight line through these points of (tokens, mu).
_DYNAMIC = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}

_REFUSED = {
    "invert_sigmas": "its network (Mochi) is given 1 - s",
    "use_exponential_sigmas": "its levels are not known here; FlowSchedule's spacings are",
    "use_beta_sigmas": "its levels are not known here; FlowSchedule's spacings are",
    "use_lu_lambdas": "its levels are not known here; FlowSchedule's spacings are",
    "stochastic_sampling": "runs are deterministic here; use stochastic_sampling=False",
    "thresholding": "it cuts off pixel values, and latents have no such bound; use thresholding=False",
}


def flow_settings(config: Mapping[str, Any], tokens: int | None) -> dict[str, Any]:
    """The fields of `FlowSchedule`, without time_scale.

    Raises:
        InvalidSetting: the config has a feature that is not supported; the message names it.
    """
    kind = config_mapping(config).get("_class_name") or _class_of(config)
    if "beta_schedule" in config and "use_flow_sigmas" not in config:
        raise InvalidSetting(
            f"beta_schedule={config['beta_schedule']!r} is not of a flow model; use NoiseSchedule.from_config"
        )
    one_of("_class_name", kind, tuple(SPACINGS))
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise InvalidSetting(f"{key}={config[key]!r} is not supported: {reason}")
    if kind != EULER:
        _check_is_flow(kind, config)
    settings: dict[str, Any] = {"spacing": SPACINGS[kind]}
    settings["num_train_timesteps"] = config.get("num_train_timesteps", 1000)
    if config.get("use_karras_sigmas"):
        return settings | _karras(config)
    if config.get("use_dynamic_shifting"):
        # Pipelines give FlowMatchEuler the levels that it shifts; the others have their own.
        settings |= {"shift": _dynamic_shift(config, tokens)} | ({"spacing": "uniform"} if kind == EULER else {})
    else:
        if tokens is not None:
            raise InvalidSetting(f"tokens={tokens!r} has no use: use_dynamic_shifting is not set; leave tokens out")
        settings["shift"] = config.get("shift" if kind == EULER else "flow_shift", 1.0)
    settings["shift_terminal"] = config.get("shift_terminal") or None
    settings["final_sigmas_type"] = "zero" if kind == EULER else config.get("final_sigmas_type", "zero")
    return settings


def _class_of(config: Mapping[str, Any]) -> str:
    """Of a live scheduler, whose config does not name it."""
    if "use_flow_sigmas" in config:
        return "DPMSolverMultistepScheduler" if "algorithm_type" in config else "UniPCMultistepScheduler"
    return "DDIMScheduler" if "beta_schedule" in config else EULER


def _check_is_flow(kind: str, config: Mapping[str, Any]) -> None:
    if not config.get("use_flow_sigmas"):
        raise InvalidSetting(f"{kind} without use_flow_sigmas is not of a flow model; use NoiseSchedule.from_config")
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction != "flow_prediction":
        raise InvalidSetting(
            f"prediction_type={prediction!r} with use_flow_sigmas is not supported; use one of 'flow_prediction'"
        )


def _karras(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios s / (1 - s) between sigma_max and sigma_min, as Cosmos' pipelines use them."""
    first, last = config.get("sigma_max"), config.get("sigma_min")
    if first is None or last is None:
        raise InvalidSetting(
            "use_karras_sigmas=True needs sigma_max and sigma_min (Cosmos' pipelines set 80 and 0.002): without them "
            "the scheduler spaces s itself, which no known model uses"
        )
    return {
        "spacing": "karras",
        "sigma_range": (first, last),
        "final_sigmas_type": config.get("final_sigmas_type", "zero"),
    }


def _dynamic_shift(config: Mapping[str, Any], tokens: int | None) -> float:
    if tokens is None:
        raise InvalidSetting(
            "use_dynamic_shifting=True: the shift depends on the size of the sample; pass tokens=, the number of tokens"
        )
    numbers = (finite_number(key, config.get(key, default)) for key, default in _DYNAMIC.items())
    fewest, low, most, high = numbers
    if fewest == most:
        raise InvalidSetting(f"base_image_seq_len={fewest!r} and max_image_seq_len={most!r} must differ")
    mu = low + (high - low) * (whole_number("tokens", tokens) - fewest) / (most - fewest)
    shape = config.get("time_shift_type", "exponential")
    one_of("time_shift_type", shape, ("exponential", "linear"))
    return math.exp(mu) if shape == "exponential" else mu
