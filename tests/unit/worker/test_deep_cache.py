"""DeepCache on tiny UNets of every family: which calls are whole, and what the others compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sampler import InvalidSetting
from service.catalog.optimise import Optimise
from service.jobs.context_windows import ContextWindows
from tests.tiny_models import save_model
from tests.tiny_sparse_control import save_controlled
from worker.networks.approximate.deep_cache import DeepCache
from worker.networks.loading import load
from worker.networks.models import Models
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache
from worker.networks.sparse_control import ControlledNetwork, FirstFrame

FRAMES = 3
TIMES = (801, 601, 401)
COMPILED = "animatediff, compiled"


@dataclass(frozen=True)
class Case:
    """A network of the worker, the OptimisedNetwork in it, and what its calls need besides x, time and text."""

    network: Any
    inner: OptimisedNetwork
    texts: tuple[Tensor, ...]
    frames: int | None = FRAMES
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def unet(self) -> Any:
        return self.inner.network

    def x(self, seed: int, *, halves: int = 2, side: int = 8) -> Tensor:
        shape = (halves, 4, *([] if self.frames is None else [self.frames]), side, side)
        return torch.randn(shape, generator=Generator().manual_seed(seed))

    @torch.no_grad()
    def __call__(self, x: Tensor, time: int, texts: tuple[Tensor, ...] | None = None) -> Tensor:
        found = self.network(x, time, encoder_hidden_states=self.texts if texts is None else texts, **self.arguments)
        return found if isinstance(found, Tensor) else found[0]


def _texts(models: Models, *, image: bool = False) -> tuple[Tensor, Tensor]:
    found = [models.encode(text) for text in ("low quality", "a red circle")]
    uncond, cond = (each.image if image else each.video for each in found)
    return uncond, cond


def _video(models: Models, network: Any = None, **others: Any) -> Case:
    return Case(network or models.optimised_video_unet, models.optimised_video_unet, _texts(models), **others)


def _image(folder: Path) -> Case:
    models = load(save_model("animatediff", folder), "cpu")
    return Case(models.optimised_image_unet, models.optimised_image_unet, _texts(models, image=True), frames=None)


def _of_family(family: str, arguments: dict[str, Any]) -> Callable[[Path], Case]:
    return lambda folder: _video(load(save_model(family, folder), "cpu"), arguments=arguments)


def _controlled(folder: Path) -> Case:
    models = load(save_controlled(folder), "cpu")
    frame = FirstFrame(torch.randn(1, 4, 1, 8, 8, generator=Generator().manual_seed(7)))
    return _video(models, ControlledNetwork(models.optimised_video_unet, models.optimised_sparse_control, frame))


def _windows(folder: Path) -> Case:
    windows = {"context_windows": ContextWindows(length=4, stride=2)}
    return _video(load(save_model("animatediff", folder), "cpu"), frames=6, arguments=windows)


def _compiled(folder: Path) -> Case:
    models = load(save_model("animatediff", folder), "cpu")
    network = OptimisedNetwork(models.video_unet, Optimise(compile=True), TextKVCache(), BlockCompiler("eager"))
    return Case(network, network, _texts(models))


CASES: dict[str, Callable[[Path], Case]] = {
    "animatediff": _of_family("animatediff", {}),
    "image network": _image,
    "modelscope": _of_family("modelscope", {}),
    "videocrafter": _of_family("videocrafter", {"fps": 8}),
    "sparse control": _controlled,
    "context windows": _windows,
    COMPILED: _compiled,
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name == COMPILED else []) for name in CASES],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("deep") / "model")


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES["animatediff"](tmp_path_factory.mktemp("deep") / "model")


@contextmanager
def cached(case: Case, **settings: Any) -> Iterator[DeepCache]:
    case.inner.deep_cache = DeepCache(case.unet, **{"levels": 1, **settings})
    try:
        yield case.inner.deep_cache
    finally:
        case.inner.deep_cache = None


@contextmanager
def whole_calls(case: Case) -> Iterator[list[int]]:
    """Yields a list that gets 1 for every call in which the middle block is computed."""
    calls: list[int] = []
    hook = case.unet.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def forced(block: nn.Module, output: Tensor) -> Iterator[None]:
    hook = block.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        hook.remove()


def deep_output(case: Case, x: Tensor, time: int) -> Tensor:
    """What comes up from the inner levels in a plain call."""
    outputs: list[Tensor] = []
    hook = case.unet.up_blocks[-2].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    case(x, time)
    hook.remove()
    (output,) = outputs
    return output


def test_shallow_call_is_the_whole_network_with_the_kept_output_of_its_inner_levels(case: Case) -> None:
    first, second = case.x(1), case.x(2)
    with forced(case.unet.up_blocks[-2], deep_output(case, first, TIMES[0])):
        expected = case(second, TIMES[1])
    exact = case(second, TIMES[1])
    with cached(case), whole_calls(case) as whole:
        case(first, TIMES[0])
        found = case(second, TIMES[1])
        assert len(whole) == 1
    assert torch.equal(found, expected)
    assert not torch.equal(found, exact)
    assert torch.equal(case(second, TIMES[1]), exact), "afterwards the network is as it was"


def test_with_an_interval_of_one_every_call_is_exact_bit_for_bit(case: Case) -> None:
    plain = [case(case.x(seed), time) for seed, time in enumerate(TIMES)]
    with cached(case, interval=1):
        found = [case(case.x(seed), time) for seed, time in enumerate(TIMES)]
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize(("interval", "expected"), [(None, 1), (2, 4), (3, 3), (7, 1)])
def test_every_nth_call_is_whole(animatediff: Case, interval: int | None, expected: int) -> None:
    with cached(animatediff, interval=interval), whole_calls(animatediff) as whole:
        for seed in range(7):
            animatediff(animatediff.x(seed), TIMES[0])
    assert len(whole) == expected


def test_a_call_is_whole_after_forgetting_and_where_text_or_size_are_new(animatediff: Case) -> None:
    uncond, cond = animatediff.texts
    x, half, other = animatediff.x(1), animatediff.x(2, halves=1), torch.randn_like(cond)
    with cached(animatediff) as cache, whole_calls(animatediff) as whole:
        steps: list[tuple[Tensor, tuple[Tensor, ...]]] = [
            (half, (uncond,)),
            (x, (uncond, cond)),  # nothing is kept of cond
            (half, (cond,)),
            (x, (cond, uncond)),
            (half, (other,)),
            (animatediff.x(3, halves=1, side=16), (cond,)),
        ]
        counts: list[int] = []
        for seen, texts in steps:
            animatediff(seen, TIMES[0], texts)
            counts.append(len(whole))
        assert counts == [1, 2, 2, 2, 3, 4]
        cache.forget()
        animatediff(half, TIMES[0], (uncond,))
        assert len(whole) == 5


def test_halves_of_guidance_together_are_those_by_themselves(animatediff: Case) -> None:
    texts, x = animatediff.texts, animatediff.x(1)
    with cached(animatediff):
        animatediff(animatediff.x(2), TIMES[0])
        both = animatediff(x, TIMES[1])
        apart = [animatediff(half, TIMES[1], (text,)) for half, text in zip(x.chunk(2), texts, strict=True)]
    assert (both - torch.cat(apart)).abs().max() <= 1e-5 * both.abs().max()


def test_a_call_that_fails_leaves_network_and_cache_as_they_were(animatediff: Case) -> None:
    plain, last = animatediff(animatediff.x(2), TIMES[1]), animatediff.unet.conv_out

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with cached(animatediff), whole_calls(animatediff) as whole:
        for _ in range(2):
            hook = last.register_forward_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                animatediff(animatediff.x(1), TIMES[0])
            hook.remove()
        assert len(whole) == 2, "nothing is kept of a call that failed"
        animatediff(animatediff.x(1), TIMES[0])
        hook = last.register_forward_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            animatediff(animatediff.x(1), TIMES[1])
        hook.remove()
    assert torch.equal(animatediff(animatediff.x(2), TIMES[1]), plain)


def test_one_level_at_least_is_an_inner_one(animatediff: Case) -> None:
    levels = len(animatediff.unet.down_blocks)
    with pytest.raises(InvalidSetting, match=rf"a network has {levels} levels; use {levels - 1} or less"):
        DeepCache(animatediff.unet, levels=levels)
