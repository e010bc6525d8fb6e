"""The network calls that are measured: for each network the first and the last one of the model's default clip."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sampler import Call, ImageDenoiser, Plan, VideoDenoiser
from sampler.guidance import PreparedDenoiser
from service.catalog.family_components import frames_per_latent
from service.catalog.optimise import Configuration, Optimise
from worker.child.engine import Engine, black_first_frame
from worker.child.tuning.float32 import float32

REPEATS = 5  # timed calls of each kind; the median counts
MAX_CALL_S = 0.5  # on a GPU: a slower call is measured with fewer frames, since float32 takes up to 16 times as long
Predictions = Mapping[str, Tensor]
Clock = Callable[[], float]


class MeasuredCalls:
    """
    Args:
        engine: its networks are switched by `use`.
        num_frames: of the clip.
        clock: seconds, where there are no CUDA events.
    """

    def __init__(self, engine: Engine, num_frames: int, clock: Clock = time.perf_counter) -> None:
        entry = engine.models.entry
        changes = {"num_frames": num_frames, "context_windows": entry.windows_for(num_frames)}
        self.engine, self.generation = engine, entry.default_generation.model_copy(update=changes)
        self._clock = clock
        plan = engine.plan(self.generation)
        self.per_clip = plan.calls
        self._calls = _first_and_last(plan)
        noise = torch.randn(engine.models.latents_shape(self.generation), generator=torch.Generator().manual_seed(0))
        self._latents = noise.to(engine.models.device)
        self._run = dict[str, Callable[[], Tensor]]()
        self._compiler: Any = None

    def use(self, optimise: Optimise) -> None:
        """Switch the networks. Raises ConfigurationError."""
        self._compiler = self.engine.use(Configuration(source="tuned", optimise=optimise))
        self._prepare(in_float32=False)

    @torch.no_grad()
    def predictions(self) -> Predictions:
        """Of every call, for both halves of guidance. Raises RuntimeError if the networks could not be compiled."""
        found = {name: run().clone() for name, run in self._run.items()}
        if self._compiler is not None and self._compiler.has_failed:
            raise RuntimeError(self._compiler.problem)
        return found

    @torch.no_grad()
    def reference(self) -> Predictions:
        """The same in float32, by the networks as they are switched now."""
        if self.engine.models.dtype is torch.float32:
            return self.predictions()
        self._prepare(in_float32=True)
        try:
            return self.predictions()
        finally:
            for network in self.engine.models.optimised_networks:
                network.clear_caches()
            self._prepare(in_float32=False)

    @torch.no_grad()
    def milliseconds(self) -> dict[str, float]:
        """Of a call of each network, after `predictions` has warmed it up."""
        times = {name: median(self._milliseconds(run) for _ in range(REPEATS)) for name, run in self._run.items()}
        networks = {name.partition(" ")[0] for name in times}
        return {network: _mean([ms for name, ms in times.items() if name.startswith(network)]) for network in networks}

    def _milliseconds(self, run: Callable[[], Tensor]) -> float:
        if self.engine.models.device.type != "cuda":
            began = self._clock()
            run()
            return 1000 * (self._clock() - began)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

    def _prepare(self, *, in_float32: bool) -> None:
        models = self.engine.models
        kept = black_first_frame(models, self.generation) if models.keeps_first_frame else None
        image, video = self.engine.denoisers(self.generation, first_frame=kept)
        denoisers: dict[str, ImageDenoiser | VideoDenoiser] = {"image": image, "video": video}
        if in_float32:
            for denoiser in denoisers.values():
                denoiser.unet = _Float32(denoiser.unet)
        prepared = {name: denoisers[name].prepare(self._latents) for name in {call.model for call in self._calls}}
        self._run = {
            f"{call.model} {call.timestep:g}": partial(_predict, prepared[call.model], self._latents, call)
            for call in self._calls
        }


def fitting_calls(engine: Engine, clock: Clock = time.perf_counter) -> tuple[MeasuredCalls, Predictions]:
    """Calls of the default clip, and what they give in float32; of fewer frames where that takes too long or too much
    memory. Raises torch.OutOfMemoryError if not even one latent frame fits."""
    entry = engine.models.entry
    step = frames_per_latent(entry.family)
    latent_frames = (entry.default_generation.num_frames - 1) // step + 1
    while True:
        try:
            calls = MeasuredCalls(engine, (latent_frames - 1) * step + 1, clock)
            calls.use(engine.configuration.optimise)
            calls.predictions()
            is_slow = engine.models.device.type == "cuda" and max(calls.milliseconds().values()) > 1000 * MAX_CALL_S
            if latent_frames == 1 or not is_slow:
                return calls, calls.reference()
        except torch.OutOfMemoryError:
            if latent_frames == 1:
                raise
        engine.free_memory()
        latent_frames = max(1, latent_frames // 2)


class _Float32:
    """A network in float32."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with float32():
            return self._network(x.float(), *args, **kwargs)


def _predict(prepared: PreparedDenoiser, latents: Tensor, call: Call) -> Tensor:
    """As the sampler calls the network, without the sum over the halves of guidance."""
    if call.guidance == call.uncond:
        return prepared.guided(latents, call.timestep, call.alpha, 1.0)
    return torch.stack(prepared.both(latents, call.timestep, call.alpha))


def _first_and_last(plan: Plan) -> list[Call]:
    found: list[Call] = []
    for network in ("image", "video"):
        calls = [call for step in plan for move in step for call in move.calls if call.model == network]
        found += {call.timestep: call for call in (*calls[:1], *calls[-1:])}.values()
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
