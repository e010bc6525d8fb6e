"""The settings of an entry whose motion modules are distilled, as their authors run them."""

from __future__ import annotations

import re
from typing import Any

from service.errors import ConfigurationError

DISTILLED_HELP = "What the motion modules are distilled as, lightning[:STEPS] or lcm[:STEPS]; sets schedule and limits."
DEFAULT_STEPS = 4
MOST_STEPS = 8  # Lightning has modules for 1, 2, 4 and 8 steps; AnimateLCM is published with 1 to 8

_SPACING = {"timestep_spacing": "trailing", "steps_offset": 1, "set_alpha_to_one": True, "num_train_timesteps": 1000}


def is_lcm(given: str | None) -> bool:
    return given is not None and given.startswith("lcm")


def distilled_settings(given: str | None) -> dict[str, Any]:
    """Keys of the entry; none if the motion modules are not distilled.

    Args:
        given: "lightning:4": AnimateDiff-Lightning (arXiv:2403.12706), DDIM without guidance on trailing timesteps, in
            exactly the steps that the modules were trained for. "lcm": AnimateLCM (arXiv:2402.00769), consistency
            sampling with little guidance, in up to 8 steps.

    Raises:
        ConfigurationError: it is of another form.
    """
    if given is None:
        return {}
    found = re.fullmatch(r"(lightning|lcm)(?::([1-9]\d?))?", given)
    steps = int(found[2] or DEFAULT_STEPS) if found else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigurationError(
            f"--distilled {given}: write lightning or lcm, if need be with the steps of a run, 1 to {MOST_STEPS}, "
            "such as lightning:8"
        )
    limits: dict[str, Any] = {"num_inference_steps": {"default": steps, "min": steps, "max": steps}}
    limits["guidance_scale"] = {"default": 1, "min": 1, "max": 1}
    sampler: dict[str, Any] = {"name": "ddim", "combination": "I-V", "video_guidance": [1.0, 1.0]}
    if is_lcm(given):
        limits["num_inference_steps"] = {"default": steps, "min": 1, "max": MOST_STEPS}
        limits["guidance_scale"] = {"default": 1.5, "min": 1, "max": 3}
        sampler["solver"] = "lcm"
    schedule = {"spacing": _SPACING, "video_schedule": {"beta_schedule": "linear"}}
    return {"distilled": True, "sampler": sampler, **schedule, **limits}
