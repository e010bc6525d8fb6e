"""From a resolved generation to frames: encode the text, run the sampler, decode. Knows nothing of jobs or queues."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sampler import Plan, ddim_plan, mixed_plan, sample, seeded_noise
from service.jobs import Generation, Phase
from service.models import ModelEntry
from worker import cpu
from worker.models import Models, load

# Told before the first step of a phase and after every step; may raise to stop the work.
OnProgress = Callable[[Phase, int, int], None]


def _say_nothing(_phase: Phase, _step: int, _total: int) -> None: ...


@dataclass
class Clip:
    """Frames (F, H, W, 3) uint8 and how long each phase took, in seconds."""

    frames: Tensor
    timings: dict[str, float] = field(default_factory=dict)


class Engine:
    """Both networks of one model entry, resident on one device."""

    def __init__(self, entry: ModelEntry, device: torch.device | None = None) -> None:
        device = device or default_device()
        if device.type == "cpu":
            cpu.tune(entry.cpu_threads)
        self.models: Models = load(entry, device)

    def generate(self, generation: Generation, on_progress: OnProgress = _say_nothing) -> Clip:
        """The same generation on the same machine gives the same frames."""
        timings: dict[str, float] = {}
        plan = self.plan(generation)
        total = len(plan)
        on_progress(Phase.ENCODING, 0, total)
        with _timed(timings, Phase.ENCODING):
            cond = self.models.encode(generation.prompt)
            uncond = self.models.encode(generation.negative_prompt)
            image, video = self.models.denoisers(cond, uncond)
        on_progress(Phase.SAMPLING, 0, total)
        with _timed(timings, Phase.SAMPLING):
            latents = seeded_noise(self.models.latents_shape(generation), generation.seed, device=self.models.device)
            for step in sample(latents, plan, image=image, video=video):
                latents = step.latents
                on_progress(Phase.SAMPLING, step.index + 1, total)
        on_progress(Phase.DECODING, total, total)
        with _timed(timings, Phase.DECODING):
            frames = self.models.decode(latents)
        return Clip(frames, timings)

    def plan(self, generation: Generation) -> Plan:
        """Raises ValueError naming the sampler setting that cannot be run."""
        steps, guidance, chosen = generation.num_inference_steps, generation.guidance_scale, generation.sampler
        if chosen.name == "ddim":
            return ddim_plan(self.models.video_schedule, steps, guidance=guidance)
        return mixed_plan(
            self.models.video_schedule,
            steps,
            combination=chosen.combination,
            order=chosen.order,
            interval=chosen.interval,
            image_guidance=chosen.image_guidance,
            video_guidance=chosen.video_guidance,
            rho=chosen.rho,
            guidance=guidance,
            image_schedule=self.models.image_schedule,
        )

    def peak_memory_mb(self) -> float:
        """On a GPU the most its allocator held since the last call, elsewhere the process's peak resident set."""
        if self.models.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.models.device) / 2**20
            torch.cuda.reset_peak_memory_stats(self.models.device)
            return peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # ru_maxrss is in KiB on Linux


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _timed(timings: dict[str, float], phase: Phase) -> Generator[None]:
    began = time.perf_counter()
    yield
    timings[phase] = time.perf_counter() - began
