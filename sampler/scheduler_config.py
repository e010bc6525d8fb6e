"""Reads a diffusers scheduler config: which keys count, their defaults, and what is refused.

Two rules for keys that are missing. What a network was trained with is decided by the class that the config names. How
a run chooses its timesteps has the defaults of `DDIMScheduler`, whatever the class: a run is one of DDIM moves, and
`DDIMScheduler.from_config` of diffusers ignores what another class would have filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampler.errors import InvalidSetting
from sampler.validation import config_mapping, one_of

TRAINING = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
# What was done to the levels after the betas were chosen, see `sampler.terminal_snr`. None: nothing.
RESCALING = {"rescale_betas_zero_snr": False, "snr_shift_scale": None}
RUN = {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True}

_COMMON = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
_KARRAS = (
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
_CONSISTENCY = ("LCMScheduler", "TCDScheduler")
COGVIDEOX = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# Variance-preserving schedulers of diffusers, and where their training defaults differ from `TRAINING` (0.42).
CLASSES: dict[str, dict[str, Any]] = {
    **{name: {} for name in _COMMON},
    **{name: {"beta_start": 0.00085, "beta_end": 0.012} for name in _KARRAS},
    **{name: {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} for name in _CONSISTENCY},
    **{name: {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} for name in COGVIDEOX},
}

# Keys that change results, and values with which a run would not be what the config says.
_REFUSED: dict[str, str] = {
    "rescale_betas_zero_snr": "its last level holds no signal, where only a network that predicts v can start; "
    "rescale_betas_zero_snr=False runs one that predicts epsilon without that level",
    "clip_sample": "it cuts off pixel values, and latents have no such bound; use clip_sample=False, "
    "as Stable Diffusion's pipelines do",
    "thresholding": "it cuts off pixel values, and latents have no such bound; use thresholding=False",
    "use_flow_sigmas": "the network was trained by flow matching, not with noise levels of betas; "
    "use FlowSchedule.from_config",
}


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `TRAINING`, `RESCALING` and `RUN` with their defaults.

    Raises:
        InvalidSetting: the config has a feature that is not supported; the message names it.
    """
    # What the class has filled in, diffusers leaves out as well.
    filled_in: Any = config_mapping(config).get("_use_default_values", ())
    given = {key: value for key, value in config.items() if key not in filled_in}
    kind = given.get("_class_name") or _class_of(config)
    if str(kind).startswith("FlowMatch"):
        raise InvalidSetting(
            f"_class_name={kind!r} is not supported here: of flow models; use FlowSchedule.from_config"
        )
    one_of("_class_name", kind, tuple(CLASSES))
    is_cogvideox = kind in COGVIDEOX
    for key, reason in _REFUSED.items():
        if given.get(key) and not _is_supported(key, given.get("prediction_type"), is_cogvideox):
            raise InvalidSetting(f"{key}={given[key]!r} is not supported: {reason}")
    if str(given.get("variance_type") or "").startswith("learned"):
        raise InvalidSetting(
            f"variance_type={given['variance_type']!r} is not supported: the network returns a variance as well; "
            "use one that predicts epsilon or v alone"
        )
    complete = {key: given.get(key, default) for key, default in (TRAINING | CLASSES[kind] | RESCALING | RUN).items()}
    complete["snr_shift_scale"] = given.get("snr_shift_scale", 3.0) if is_cogvideox else None  # others do not read it
    return complete


def _class_of(config: Mapping[str, Any]) -> str:
    """Of a live scheduler, whose config does not name it: those with other levels have other keys."""
    if "snr_shift_scale" in config:
        return "CogVideoXDDIMScheduler"
    return "FlowMatchEulerDiscreteScheduler" if "shift" in config and "beta_schedule" not in config else "DDIMScheduler"


def _is_supported(key: str, prediction_type: Any, is_cogvideox: bool) -> bool:
    if key == "rescale_betas_zero_snr":
        return prediction_type == "v_prediction"
    return is_cogvideox and key in ("clip_sample", "thresholding")  # CogVideoX's schedulers do not read them
