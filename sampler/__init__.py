"""The IV-Mixed Sampler (arXiv:2410.04171) as a library: tensors in, tensors out. Imports torch and nothing else."""

from sampler.baseline_plans import ddim_plan, fused_plan, zigzag_plan
from sampler.denoise_and_goback_moves import (
    AnyMove,
    Call,
    ConsistencyMove,
    FusedMove,
    Move,
    MultistepMove,
    Renoise,
    Restart,
    SolverMove,
)
from sampler.denoisers import ImageDenoiser, VideoDenoiser
from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.freeinit import free_init_plan
from sampler.guidance import AddedConditions, Denoiser
from sampler.iv_mixed_plans import mixed_plan
from sampler.loop import LatentsNotFinite, Step, sample
from sampler.noise import noised, seeded_noise
from sampler.noise_schedule import NoiseSchedule
from sampler.official_plans import official_plan
from sampler.plan import Plan

# Names of version 0.1, still importable.
BadSetting, DoesNotFit = InvalidSetting, IncompatibleInputs

__all__ = [
    "AddedConditions",
    "AnyMove",
    "BadSetting",
    "Call",
    "ConsistencyMove",
    "Denoiser",
    "DoesNotFit",
    "FusedMove",
    "ImageDenoiser",
    "IncompatibleInputs",
    "InvalidSetting",
    "LatentsNotFinite",
    "Move",
    "MultistepMove",
    "NoiseSchedule",
    "Plan",
    "Renoise",
    "Restart",
    "SolverMove",
    "Step",
    "VideoDenoiser",
    "ddim_plan",
    "free_init_plan",
    "fused_plan",
    "mixed_plan",
    "noised",
    "official_plan",
    "sample",
    "seeded_noise",
    "zigzag_plan",
]
