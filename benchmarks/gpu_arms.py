"""The arms of `gpu_loop`: one loop on one pair of networks each. To add one, write a function and list it in ARMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_networks import Pair
from benchmarks.released_loops import SCHEDULER, released_loop
from sampler import ImageDenoiser, NoiseSchedule, VideoDenoiser, official_plan, sample
from service.catalog.optimise import Optimise
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache
from worker.networks.optimise.weight_memory import channels_last, resident_bytes

TIMESTEP = 500  # of the single network calls that are compared

# Latents of both CFG branches, (2, C, F, h, w) in the networks' dtype -> the network's output of that shape.
OneCall = Callable[[Tensor], Tensor]


@dataclass
class Arm:
    """`run` takes the number of steps and yields the latents after each; `calls` are single calls for the gate."""

    name: str
    what: str
    run: Callable[[int], Iterator[Tensor]]
    calls: dict[str, OneCall]
    weights_bytes: int
    compiler: BlockCompiler | None = None
    steps_s: list[float] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)


def released(networks: Pair, _backend: str) -> Arm:
    return _released("A", "released loop, eager", networks, networks.image, networks.video)


def released_compiled(networks: Pair, backend: str) -> Arm:
    """What an experienced user tries first."""
    own = networks.copy()
    for unet in (own.image, own.video):
        channels_last(unet)
    image, video = (torch.compile(unet, backend=backend) for unet in (own.image, own.video))
    return _released("A'", "the same, compiled, channels_last", own, image, video)


def ours(networks: Pair, _backend: str) -> Arm:
    return _ours("B", "ours, exact", networks, Optimise(), None)


def ours_compiled(networks: Pair, backend: str) -> Arm:
    return _ours(
        "B'", "ours, blocks compiled, channels_last", networks, Optimise(compile=True, channels_last=True), backend
    )


ARMS: dict[str, Callable[[Pair, str], Arm]] = {"A": released, "A'": released_compiled, "B": ours, "B'": ours_compiled}


def exact(networks: Pair) -> Arm:
    """The reference of the gate: the released loop in float32."""
    own = networks.copy(torch.float32)
    return _released("float32", "released loop in float32", own, own.image, own.video)


def _released(name: str, what: str, networks: Pair, image: Any, video: Any) -> Arm:
    image_text, video_text = torch.cat(networks.image_texts), torch.cat(networks.video_texts)
    frames = networks.latents.shape[2]
    per_frame = image_text.repeat_interleave(frames, dim=0)
    for_video = per_frame if networks.family == "animatediff" else video_text
    t = torch.full((), TIMESTEP, dtype=torch.int64, device=image_text.device)

    def call_image(both: Tensor) -> Tensor:
        return _clip(image(_folded(both), t, encoder_hidden_states=per_frame).sample, both)

    def call_video(both: Tensor) -> Tensor:
        return video(both, t, encoder_hidden_states=for_video).sample

    def run(steps: int) -> Iterator[Tensor]:
        x = networks.latents.to(networks.dtype)
        return released_loop(x, image, video, image_text, video_text, steps, family=networks.family)

    return Arm(name, what, run, {"image": call_image, "video": call_video}, _bytes(networks))


def _ours(name: str, what: str, networks: Pair, optimise: Optimise, backend: str | None) -> Arm:
    own, cache = networks.copy(), TextKVCache()
    compiler = None if backend is None else BlockCompiler(backend)
    image, video = (OptimisedNetwork(unet, optimise, cache, compiler) for unet in (own.image, own.video))
    schedule = NoiseSchedule.from_config(SCHEDULER)

    def call_image(both: Tensor) -> Tensor:
        return _clip(image(_folded(both), TIMESTEP, encoder_hidden_states=own.image_texts).sample, both)

    def call_video(both: Tensor) -> Tensor:
        return video(both, TIMESTEP, encoder_hidden_states=own.video_texts).sample

    def run(steps: int) -> Iterator[Tensor]:
        cache.clear()  # every run is a separate job
        denoisers = {
            "image": ImageDenoiser(image, own.image_texts[1], own.image_texts[0]),
            "video": VideoDenoiser(video, own.video_texts[1], own.video_texts[0]),
        }
        plan = official_plan(own.family, schedule, steps)
        return (step.latents for step in sample(own.latents, plan, **denoisers))

    return Arm(name, what, run, {"image": call_image, "video": call_video}, _bytes(own), compiler)


def _folded(both: Tensor) -> Tensor:
    """(2, C, F, h, w) -> (2*F, C, h, w)."""
    return both.transpose(1, 2).flatten(0, 1)


def _clip(frames: Tensor, like: Tensor) -> Tensor:
    """(2*F, C, h, w) -> (2, C, F, h, w)."""
    return frames.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def _bytes(networks: Pair) -> int:
    return resident_bytes(networks.image, networks.video)
