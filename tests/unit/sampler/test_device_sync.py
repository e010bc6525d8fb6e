"""The loop never asks a tensor for a number: on a GPU every such question waits for all that is queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead import Null
from benchmarks.released import released_loop
from sampler import ImageDenoiser, LatentsNotFinite, Move, Plan, VideoDenoiser, ddim_plan, sample, seeded_noise
from sampler.finite_check import MAX_STEPS_AHEAD
from tests.unit.sampler.networks import Smooth, texts
from tests.unit.sampler.test_loop import PLANS, SD, SHAPE

ASKS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}


class Asked(Tensor):
    """Counts the questions put to it and to all that is computed from it."""

    asked: Counter[str] = Counter()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ASKS:
            cls.asked[name] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Reads(TorchDispatchMode):
    """Counts the operators that turn what is on a device into a Python number."""

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
def test_no_number_is_asked_of_a_tensor_within_the_loop(name: str) -> None:
    steps = run(PLANS[name], seeded_noise(SHAPE, 26).as_subclass(Asked))  # `sample` itself has looked at the start
    Asked.asked.clear()
    with Reads() as reads:
        made = list(steps)
    assert isinstance(made[-1], Asked)  # so that every tensor on the way was watched
    assert not Asked.asked
    assert not reads.count


def test_the_released_loop_asks_for_dozens() -> None:
    """So the counting counts."""
    text = torch.cat(texts())
    with Reads() as reads:
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
def test_not_a_number_on_a_gpu_is_noticed_two_steps_later_at_most() -> None:
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
