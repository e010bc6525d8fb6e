"""The IV-Mixed Sampler (arXiv:2410.04171) as a library: tensors in, tensors out; imports torch and nothing else.

schedule.py   noise levels and timesteps
moves.py      the kinds of moves: network calls and weights, as data
plan.py       a plan: every move of a run, known before it; table.py prints it
mixed.py      settings -> plan: DDIM, IV-mixed, Z-Sampling, fused; grid.py has the levels they walk on
official.py   settings -> plan: the released code of three families, literally
freeinit.py   plan -> plan: FreeInit around it
denoisers.py  any diffusers-style UNet -> guided epsilon
program.py    plan and models -> one function for each move, every number worked out
loop.py       plan and latents -> the latents after every step; watch.py sees that they stay numbers
latents.py    the noise a run starts from, and draws
errors.py     what a caller can get wrong
"""

from sampler.denoisers import Denoiser, ImageDenoiser, VideoDenoiser
from sampler.errors import IncompatibleInputs, InvalidSetting
from sampler.freeinit import free_init_plan
from sampler.loop import LatentsNotFinite, Step, sample
from sampler.mixed_plans import ddim_plan, fused_plan, mixed_plan, zigzag_plan
from sampler.moves import AnyMove, Call, FusedMove, Move, Renoise, Restart, SolverMove
from sampler.noise import seeded_noise
from sampler.noise_schedule import NoiseSchedule
from sampler.official_plans import official_plan
from sampler.plan import Plan

# Names of version 0.1, still importable.
BadSetting, DoesNotFit = InvalidSetting, IncompatibleInputs

__all__ = [
    "AnyMove",
    "BadSetting",
    "Call",
    "Denoiser",
    "DoesNotFit",
    "FusedMove",
    "ImageDenoiser",
    "IncompatibleInputs",
    "InvalidSetting",
    "LatentsNotFinite",
    "Move",
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
    "official_plan",
    "sample",
    "seeded_noise",
    "zigzag_plan",
]
