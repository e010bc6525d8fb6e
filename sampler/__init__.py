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
    ResizingMove,
    Restart,
    SolverMove,
    ZeroVelocity,
)
from sampler.denoisers import ImageDenoiser, VideoDenoiser
from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.evs_plan import evs_plan
from sampler.flow_schedule import FlowSchedule
from sampler.free_noise import free_noise
from sampler.freeinit import free_init_plan
from sampler.guidance import AddedConditions, Denoiser
from sampler.guidance_rules import AdaptiveProjectedGuidance, CfgZeroStar, GuidanceRule, RuledScale
from sampler.iv_mixed_plans import mixed_plan
from sampler.loop import LatentsNotFinite, Step, sample
from sampler.noise import noised, seeded_noise
from sampler.noise_schedule import NoiseSchedule
from sampler.official_plans import official_plan
from sampler.plan import Plan
from sampler.prediction import PredictionType, along
from sampler.resizing import shape_after
from sampler.schedule import Level, Schedule

# Names of version 0.1, still importable.
BadSetting, DoesNotFit = InvalidSetting, IncompatibleInputs

__all__ = [
    "AdaptiveProjectedGuidance",
    "AddedConditions",
    "AnyMove",
    "BadSetting",
    "Call",
    "CfgZeroStar",
    "ConsistencyMove",
    "Denoiser",
    "DoesNotFit",
    "FlowSchedule",
    "FusedMove",
    "GuidanceRule",
    "ImageDenoiser",
    "IncompatibleInputs",
    "InvalidSetting",
    "LatentsNotFinite",
    "Level",
    "Move",
    "MultistepMove",
    "NoiseSchedule",
    "Plan",
    "PredictionType",
    "Renoise",
    "ResizingMove",
    "Restart",
    "RuledScale",
    "Schedule",
    "SolverMove",
    "Step",
    "VideoDenoiser",
    "ZeroVelocity",
    "along",
    "ddim_plan",
    "evs_plan",
    "free_init_plan",
    "free_noise",
    "fused_plan",
    "mixed_plan",
    "noised",
    "official_plan",
    "sample",
    "seeded_noise",
    "shape_after",
    "zigzag_plan",
]
