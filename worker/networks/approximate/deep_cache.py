"""DeepCache (arXiv:2312.00858) for diffusers' UNets: the inner levels run in some calls, the outer ones in all.

A UNet goes down its levels and up again. What comes up from the inner ones changes little between neighbouring noise
levels. A whole call keeps it; later calls with the same text run the outer levels alone and take it from there.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sampler import InvalidSetting

Texts = tuple[Tensor, ...]  # one per CFG branch, (B, tokens, dim)
Shape = tuple[int, ...]


@dataclass
class _Kept:
    """What a whole call computed for one text.

    Args:
        text: held, which reserves its id.
        rows: shape of the call's input for this text.
        deep: what comes up from the inner levels, rows of this text first.
        skips: shapes of the skip connections of each inner block on the way down.
        shallow_calls: that have used it.
    """

    text: Tensor
    rows: Shape
    deep: Tensor
    skips: list[list[Shape]]
    shallow_calls: int = 0


class DeepCache:
    """
    Args:
        unet: UNet2DConditionModel, UNetMotionModel, UNet3DConditionModel, or one with their blocks.
        levels: outer levels that run in every call.
        interval: every n-th call with a text is whole; None: the first.

    Raises:
        InvalidSetting: the network has too few levels.
    """

    def __init__(self, unet: Any, *, levels: int, interval: int | None = None) -> None:
        blocks = len(unet.down_blocks)
        if levels >= blocks:
            raise InvalidSetting(f"cache.levels={levels}: a network has {blocks} levels; use {blocks - 1} or less")
        self._down: list[Any] = list(unet.down_blocks)[levels:]
        self._middle: Any = unet.mid_block
        self._up: list[Any] = list(unet.up_blocks)[: blocks - levels]
        self._interval = interval
        self._kept = dict[int, _Kept]()

    def forget(self) -> None:
        """The next call with each text is whole."""
        self._kept.clear()

    def run(self, texts: Texts, x: Tensor, call: Callable[[], Any]) -> Any:
        """`call()`, which calls the network with x of these texts: whole, or the outer levels alone."""
        rows = (len(x) // len(texts), *x.shape[1:])
        kept = [found for text in texts if (found := self._usable(text, rows)) is not None]
        if len(kept) == len(texts):
            with self._shallow(kept):
                output = call()
            for each in kept:
                each.shallow_calls += 1
            return output
        with self._recorded() as recorded:
            output = call()
        self._keep(texts, rows, recorded)
        return output

    def _usable(self, text: Tensor, rows: Shape) -> _Kept | None:
        found = self._kept.get(id(text))
        if found is None or found.rows != rows:
            return None
        is_due = self._interval is not None and found.shallow_calls >= self._interval - 1
        return None if is_due else found

    def _keep(self, texts: Texts, rows: Shape, recorded: dict[Any, Any]) -> None:
        count = len(texts)
        skips = [[(len(skip) // count, *skip.shape[1:]) for skip in recorded[block][1]] for block in self._down]
        for text, deep in zip(texts, recorded[self._up[-1]].chunk(count), strict=True):
            self._kept[id(text)] = _Kept(text, rows, deep, skips)

    @contextmanager
    def _recorded(self) -> Generator[dict[Any, Any]]:
        """The outputs of the blocks that shallow calls leave out, by block."""
        outputs: dict[Any, Any] = {}

        def note(block: Any, _arguments: object, output: Any) -> None:
            outputs[block] = output

        with ExitStack() as stack:
            for block in (*self._down, self._up[-1]):
                stack.callback(block.register_forward_hook(note).remove)
            yield outputs

    @contextmanager
    def _shallow(self, kept: Sequence[_Kept]) -> Generator[None]:
        """Only the `forward` of the inner blocks is replaced, for one call."""
        deep = kept[0].deep if len(kept) == 1 else torch.cat([each.deep for each in kept])
        stubs: dict[Any, Callable[..., Any]] = dict.fromkeys((self._middle, *self._up), _unchanged)
        for block, shapes in zip(self._down, kept[0].skips, strict=True):
            stubs[block] = partial(_skipped, [(len(kept) * rows, *rest) for rows, *rest in shapes])
        stubs[self._up[-1]] = lambda *_arguments, **_named: deep
        for block, stub in stubs.items():
            block.forward = stub
        try:
            yield
        finally:
            for block in stubs:
                del block.forward


def _unchanged(hidden_states: Tensor, *_arguments: object, **_named: object) -> Tensor:
    return hidden_states


def _skipped(shapes: Sequence[Shape], hidden_states: Tensor, *_arguments: object, **_named: object) -> Any:
    """Zeros in the shapes of the skip connections, without memory: no layer reads them, but SparseCtrl adds to them."""
    skips = tuple(hidden_states.new_zeros(()).expand(shape) for shape in shapes)
    return skips[-1], skips
