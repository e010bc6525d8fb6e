"""From a resolved generation to frames: encode the text, run the sampler, decode. Knows nothing of jobs or queues."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sampler import NoiseSchedule, Plan, ddim_plan, free_init_plan, fused_plan, mixed_plan, sample, zigzag_plan
from service.jobs import Generation, Phase
from service.models import ModelEntry
from worker import cpu
from worker.models import Models, default_device, load

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
            texts = self.models.encode([generation.prompt, generation.negative_prompt])
            image, video = self.models.denoisers(texts[:1], texts[1:], fps=generation.fps)
        on_progress(Phase.SAMPLING, 0, total)
        with _timed(timings, Phase.SAMPLING):
            # On the CPU: one seed, one clip, on any card. The run draws on from where the start noise ends; a second
            # generator of the same seed would give the start noise again.
            generator = torch.Generator().manual_seed(generation.seed)
            start = torch.randn(self.models.latents_shape(generation), generator=generator)
            latents = start.to(self.models.device)
            for step in sample(latents, plan, image=image, video=video, generator=generator):
                latents = step.latents
                on_progress(Phase.SAMPLING, step.index + 1, total)
        on_progress(Phase.DECODING, total, total)
        with _timed(timings, Phase.DECODING):
            frames = self.models.decode(latents)
        return Clip(frames, timings)

    def plan(self, generation: Generation) -> Plan:
        """Raises ValueError naming the sampler setting that cannot be run."""
        models, chosen = self.models, generation.sampler
        schedule = replace(models.video_schedule, **_spacing(generation))
        steps, guidance, used = generation.num_inference_steps, generation.guidance_scale, chosen.used
        plain = partial(ddim_plan, schedule, steps, guidance=guidance)
        plans: dict[str, Callable[..., Plan]] = {
            "ddim": plain,
            "iv-mixed": partial(mixed_plan, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
            "fused": partial(fused_plan, schedule, steps, guidance=guidance, image_schedule=models.image_schedule),
            "zigzag": partial(zigzag_plan, schedule, steps, guidance=guidance),
            "freeinit": partial(_free_init, plain, schedule),
        }
        return plans[chosen.name](**used)

    def peak_memory_mb(self) -> float:
        """On a GPU the most its allocator held since the last call, elsewhere the process's peak resident set."""
        if self.models.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.models.device) / 2**20
            torch.cuda.reset_peak_memory_stats(self.models.device)
            return peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # ru_maxrss is in KiB on Linux


def _free_init(inner: Callable[[], Plan], schedule: NoiseSchedule, *, iterations: int) -> Plan:
    return free_init_plan(inner(), schedule, iterations)


def _spacing(generation: Generation) -> dict[str, Any]:
    """The steps that the generation was promised, whatever the model's registry entry says by now."""
    return generation.spacing.model_dump(exclude={"num_train_timesteps"})


@contextmanager
def _timed(timings: dict[str, float], phase: Phase) -> Generator[None]:
    began = time.perf_counter()
    yield
    timings[phase] = time.perf_counter() - began
