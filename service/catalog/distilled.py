"""What a model with distilled motion modules can do (AnimateDiff-Lightning, AnimateLCM).

Distillation folds guidance and many steps into the video model. Its answer to the prompt is good at a few noise levels,
its answer without the prompt means nothing. A go-back move of the video model needs both.
"""

from __future__ import annotations

from service.errors import InvalidParameter
from service.jobs.sampler_settings import SamplerSettings

LCM_STEPS = 50  # timesteps that latent consistency models are distilled at


def check_distilled(model: str, sampler: SamplerSettings) -> None:
    """Raises InvalidParameter naming the setting that a distilled video model cannot run."""
    if sampler.name not in ("ddim", "iv-mixed", "evs") or (sampler.name == "evs" and sampler.solver == "lcm"):
        evs = "" if sampler.solver == "lcm" else ", evs"
        raise InvalidParameter(
            "sampler.name",
            f"Sampler '{sampler.name}' does not work with the distilled video model of '{model}'; use ddim{evs}, or "
            "iv-mixed with a combination such as I-V.",
        )
    if sampler.name != "evs" and sampler.guidance_rule != "cfg":
        raise InvalidParameter(
            "sampler.guidance_rule",
            f"guidance_rule '{sampler.guidance_rule}' needs guidance, but the distilled video model of '{model}' takes "
            "none; leave it out.",
        )
    if sampler.is_image_alone:
        raise InvalidParameter(
            "sampler.network",
            f"The image model of '{model}' is not distilled and needs more steps than this model takes; use network "
            "video.",
        )
    if sampler.name == "iv-mixed":
        _check_mixed(model, sampler)


def _check_mixed(model: str, sampler: SamplerSettings) -> None:
    goback, _, denoise = sampler.combination.partition("-")
    if "V" in goback:
        raise InvalidParameter(
            "sampler.combination",
            f"Combination '{sampler.combination}' goes back with the video model, which in '{model}' is distilled and "
            "has no answer without the prompt; go back with I or R, such as I-V or R-V.",
        )
    if "V" in denoise and sampler.video_guidance != (1.0, 1.0):
        raise InvalidParameter(
            "sampler.video_guidance",
            f"The distilled video model of '{model}' takes no guidance; send video_guidance [1, 1].",
        )


def check_lcm_steps(sampler: SamplerSettings, steps: int) -> None:
    """Raises InvalidParameter if the solver `lcm` has not so many timesteps."""
    if (sampler.name, sampler.solver) == ("ddim", "lcm") and steps > LCM_STEPS:
        raise InvalidParameter(
            "num_inference_steps",
            f"num_inference_steps={steps}: solver 'lcm' takes at most {LCM_STEPS}, the timesteps that consistency "
            "models are distilled at.",
        )
