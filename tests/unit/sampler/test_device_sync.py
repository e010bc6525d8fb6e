"""The loop never reads a tensor as a Python number: on a GPU each such read waits for all queued work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead import Null
from benchmarks.released_loops import released_loop
from sampler import ImageDenoiser, LatentsNotFinite, Move, Plan, VideoDenoiser, ddim_plan, sample, seeded_noise
from sampler.finite_check import MAX_STEPS_AHEAD
from tests.unit.sampler.networks import Smooth, texts
from tests.unit.sampler.plans import PLANS, SD, SHAPE

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}


class Watched(Tensor):
    """Counts how often it, or anything computed from it, is read as a Python number."""

    reads: Counter[str] = Counter()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            cls.reads[name] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class CountReads(TorchDispatchMode):
    """Counts the operators that read a tensor as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def run(plan: Plan, x: Tensor) -> Iterator[Tensor]:
    models = {"image": ImageDenoiser(Smooth(0.1), *texts()), "video": VideoDenoiser(Smooth(0.4), *texts())}
    steps = sample(x, plan, **models, generator=Generator().manual_seed(1))
    return (step.latents for step in steps)


@pytest.mark.parametrize("name", PLANS)
def test_the_loop_reads_no_tensor_as_a_number(name: str) -> None:
    steps = run(PLANS[name], seeded_noise(SHAPE, 26).as_subclass(Watched))  # `sample` itself has checked the start
    Watched.reads.clear()
    with CountReads() as reads:
        made = list(steps)
    assert isinstance(made[-1], Watched)  # so every intermediate tensor was watched
    assert not Watched.reads
    assert not reads.count


def test_the_released_loop_reads_dozens() -> None:
    """Proves that the counting works."""
    text = torch.cat(texts())
    with CountReads() as reads:
        list(released_loop(seeded_noise(SHAPE, 26), Null(), Null(), text, text, 5))
    assert reads.count.total() > 5 * 10


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLANS)
def test_nothing_waits_for_a_gpu(name: str) -> None:
    cond, uncond = (text.cuda() for text in texts())
    models = {"image": ImageDenoiser(Smooth(0.1), cond, uncond), "video": VideoDenoiser(Smooth(0.4), cond, uncond)}
    run = sample(seeded_noise(SHAPE, 26, device="cuda"), PLANS[name], **models, generator=Generator().manual_seed(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = list(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == len(PLANS[name])


@pytest.mark.gpu
def test_nan_on_a_gpu_is_detected_at_most_two_steps_later() -> None:
    class Fails(Smooth):
        def __call__(self, x: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
            return super().__call__(x, timestep, encoder_hidden_states) / (0.0 if timestep < 500 else 1.0)

    plan, (cond, uncond) = ddim_plan(SD, 10), (text.cuda() for text in texts())
    first = next(i for i, (move,) in enumerate(plan) if isinstance(move, Move) and move.timestep < 500)
    run = sample(seeded_noise(SHAPE, 27, device="cuda"), plan, video=VideoDenoiser(Fails(0.1), cond, uncond))
    seen: list[int] = []
    with pytest.raises(LatentsNotFinite, match=f"after move 1 of step {first}") as caught:
        seen.extend(step.index for step in run)
    assert caught.value.step == first
    assert len(seen) <= first + MAX_STEPS_AHEAD
