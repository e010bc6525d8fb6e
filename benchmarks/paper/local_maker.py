"""Makes clips in this process, several of them together."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version

import torch
from pydantic import ValidationError

from benchmarks.paper.arms import Fields
from benchmarks.paper.clips import LOSSLESS, MP4, Frames, lossless_bytes, mp4_bytes
from benchmarks.paper.facts import HERE
from benchmarks.paper.makers import Batch, Made, Save
from benchmarks.paper.prompts import Prompt
from sampler import sample
from service.catalog.invalid_parameter import invalid_parameter
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.settings import load_settings
from worker.child.engine import Engine
from worker.child.fingerprint import weights_digest
from worker.child.start_noise import start_noise
from worker.networks.caching import caching
from worker.networks.text_encoder import PromptTooLong, TextOptions


@cache
def loaded(model: str) -> Engine:
    """The networks of a model, once in this process."""
    return Engine(ModelRegistry.of(load_settings()).get(model))


class LocalMaker:
    """Raises ModelNotFound, ModelNotFetched or ConfigurationError before any network is loaded.

    Args:
        model: id in the registry; None: its first one.
        cut_prompts: whether prompts that the text encoders cannot take are cut after the last word that fits.
    """

    def __init__(self, model: str | None, *, cut_prompts: bool = False) -> None:
        self._entry = ModelRegistry.of(load_settings()).get(model)
        self.model, self._cut_prompts = self._entry.id, cut_prompts
        self.made_by = commit()

    @property
    def engine(self) -> Engine:
        """Loaded when it is first needed, after all settings have been checked."""
        return loaded(self.model)

    @property
    def weights(self) -> str | None:
        return weights_digest(self.engine.models)[:16]

    def own_settings(self) -> Mapping[str, object]:
        return self._entry.sampler.model_dump()

    def network_calls(self, fields: Fields) -> Mapping[str, int]:
        return self._resolved({**fields, "prompt": self._entry.default_generation.prompt, "seed": 0}).network_calls

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises InvalidParameter naming those that the model cannot draw or read."""
        for prompt in prompts:
            self._entry.check_text("prompt", prompt.text)
        long = [prompt.id for prompt in prompts if not self._fits(prompt.text)]
        if long and not self._cut_prompts:
            raise InvalidParameter(
                "prompts",
                f"{len(long)} of {len(prompts)} prompts ({', '.join(long[:3])}, ...) are longer than the text encoders "
                f"of '{self.model}' take; --cut-prompts cuts them after the last word that fits, or set prompt_chunks "
                "in the model's entry.",
            )

    def _fits(self, text: str) -> bool:
        try:
            self.engine.models.check_length([text], TextOptions.of(self._entry))
        except PromptTooLong:
            return False
        return True

    def _cut(self, text: str) -> str:
        words = text.split(" ")
        while not self._fits(" ".join(words)) and len(words) > 1:
            words.pop()
        return " ".join(words)

    def _resolved(self, request: Fields) -> Generation:
        if self._cut_prompts:
            request = {**request, "prompt": self._cut(request["prompt"])}
        try:
            return self._entry.resolve(VideoRequest.model_validate(request))
        except ValidationError as e:
            raise invalid_parameter(e) from e

    def make(self, batches: Iterable[Batch], suffixes: frozenset[str], save: Save) -> None:
        for batch in batches:
            generations = [self._resolved(order.request) for order in batch.orders]
            began, cpu_began = time.perf_counter(), time.process_time()
            clips = self._frames(generations)
            share = 1 / len(clips)
            seconds, cpu_seconds = share * (time.perf_counter() - began), share * (time.process_time() - cpu_began)
            for order, generation, frames in zip(batch.orders, generations, clips, strict=True):
                if order.key in batch.missing:
                    files = _files(frames, generation.fps, suffixes)
                    save(order, Made(files, seconds, self.engine.device_name, cpu_seconds))

    def _frames(self, generations: Sequence[Generation]) -> list[Frames]:
        """A single clip goes the way of a job, with its retry in low-memory mode."""
        if len(generations) == 1:
            return [self.engine.generate(generations[0]).frames.numpy()]
        return sampled_together(self.engine, generations)


def _files(frames: Frames, fps: int, suffixes: frozenset[str]) -> dict[str, bytes]:
    writers = {MP4: mp4_bytes, LOSSLESS: lossless_bytes}
    return {suffix: writers[suffix](frames, fps) for suffix in sorted(suffixes)}


@torch.no_grad()
def sampled_together(engine: Engine, generations: Sequence[Generation]) -> list[Frames]:
    """Clips that differ in prompt and seed only, in one batch: on a CPU half the time of one after the other.

    Each draws its noise from its own generator, in the order in which a job draws it.
    """
    models, first = engine.models, generations[0]
    plan = engine.plan(first)
    models.loras.use(first.loras)
    image, video = engine.denoisers(*generations)
    generators = [torch.Generator().manual_seed(generation.seed) for generation in generations]
    shape = models.latents_shape(first)
    noise = [start_noise(shape, *pair, plan) for pair in zip(generators, generations, strict=True)]
    latents = torch.cat(noise).to(models.device)
    with caching(models, first) as step_done:
        for step in sample(latents, plan, image=image, video=video, generator=generators):
            latents = step.latents
            step_done(step.index + 1)
    return [models.decode(clip).numpy() for clip in latents.split(1)]


def commit() -> str:
    """The commit of the code, with "+" if files have changed since; without git, the installed version."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else f"ivmix {version('ivmix')}"
