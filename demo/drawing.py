"""Generates clips of the demo models for an evaluation: many prompts and samplers, the same noise, all cores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from demo.shapes import Scenes
from sampler import Plan, sample, seeded_noise
from service.catalog.registry import ModelRegistry
from service.jobs.request import VideoRequest
from worker.child.engine import Engine
from worker.networks.models import Models

BATCH = 10  # clips per batch; half the time per clip of single clips
NOISE_SEED = 1000  # seed of the first clip; clip i has seed 1000 + i


@dataclass(frozen=True)
class Drawn:
    """Clips (n, FRAMES, 3, 48, 48) in [-1, 1] at the size of the networks, and CPU seconds per clip."""

    clips: Tensor
    seconds: float


def demo_models() -> Models:
    return Engine(ModelRegistry.load().get("demo"), torch.device("cpu")).models


def draw(
    plans: Mapping[str, Plan], scenes: Scenes, *, first_seed: int = NOISE_SEED, processes: int = 1
) -> Iterator[tuple[str, Drawn]]:
    """Yield the clips of each plan as they are done. Clip i of every plan starts from the noise of first_seed + i.

    Args:
        processes: Worker processes with one thread each; with 1, this process draws.
    """
    captions = scenes.captions()
    parts = [slice(i, i + BATCH) for i in range(0, len(captions), BATCH)]
    with _executor(processes) as pool:
        waiting = {
            name: [pool.submit(_draw, plan, captions[part], first_seed + part.start) for part in parts]
            for name, plan in plans.items()
        }
        for name, futures in waiting.items():
            clips, seconds = zip(*(future.result() for future in futures), strict=True)
            yield name, Drawn(torch.cat([torch.from_numpy(c) for c in clips]), sum(seconds) / len(captions))


def _executor(processes: int) -> Executor:
    if processes == 1:  # a thread instead of a process saves seconds of imports
        return ThreadPoolExecutor(1, initializer=_start)
    return ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start)


_models: Models | None = None  # of this process


def _start() -> None:
    global _models
    torch.set_num_threads(1)
    _models = _models or demo_models()


@torch.no_grad()
def _draw(plan: Plan, captions: Sequence[str], first_seed: int) -> tuple[NDArray[np.float32], float]:
    """Returns numpy arrays because each tensor sent through the pool would need a shared-memory file handle."""
    assert _models is not None
    began = time.thread_time()
    entry = _models.entry
    negative = _models.encode([entry.negative_prompt] * len(captions))
    image, video = _models.denoisers(_models.encode(captions), negative)
    _, *shape = _models.latents_shape(entry.resolve(VideoRequest(prompt=captions[0])))
    seeds = [first_seed + i for i in range(len(captions))]
    latents = seeded_noise((len(captions), *shape), seeds)
    fresh = [Generator().manual_seed(-1 - seed) for seed in seeds]  # for plans that add noise while sampling
    for step in sample(latents, plan, image=image, video=video, generator=fresh):
        latents = step.latents
    frames = _models.vae.decode(latents.transpose(1, 2).flatten(0, 1) / _models.vae.config.scaling_factor).sample
    clips = frames.clamp(-1, 1).unflatten(0, (len(captions), -1))
    return clips.numpy(), time.thread_time() - began
