"""The IV-Mixed Sampler (arXiv:2410.04171) as a library: tensors in, tensors out; imports torch and nothing else.

schedule.py   noise levels and timesteps
plan.py       settings -> a plan: every network call, known before the run
denoisers.py  any diffusers-style UNet -> guided epsilon
loop.py       plan and latents -> the latents after every step
latents.py    the noise a run starts from
"""

from sampler.denoisers import Denoiser, ImageDenoiser, VideoDenoiser
from sampler.latents import seeded_noise
from sampler.loop import Step, sample
from sampler.plan import Move, Plan, ddim_plan, mixed_plan, official_plan
from sampler.schedule import NoiseSchedule

__all__ = [
    "Denoiser",
    "ImageDenoiser",
    "Move",
    "NoiseSchedule",
    "Plan",
    "Step",
    "VideoDenoiser",
    "ddim_plan",
    "mixed_plan",
    "official_plan",
    "sample",
    "seeded_noise",
]
