"""The training loop shared by all stages of `demo/train.py`: data-parallel, averaged weights, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

SEED = 2410_04171
CHECKPOINT_EVERY = 200  # steps


class Recipe(NamedTuple):
    steps: int
    batch: int  # of each process
    rate: float  # learning rate


class Group:
    """Data-parallel processes connected by gloo; a single process is a group of size 1."""

    def __init__(self, rank: int, size: int, port: int) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)

    def average_gradients(self, params: list[nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        offset = 0
        for p in params:
            p.grad = (flat[offset : offset + p.numel()] / self.size).view_as(p)
            offset += p.numel()

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


def fit(
    stage: str,
    recipe: Recipe,
    model: nn.Module,
    groups: list[tuple[float, Iterable[nn.Parameter]]],
    loss_of: Callable[[int, int], Tensor],
    *,
    group: Group,
    work: Path,
    probe: Callable[[], str] | None = None,
) -> None:
    """Minimise `loss_of(step, batch)` and leave the averaged weights (EMA) in `model`. Resumed runs continue exactly.

    `groups` are (learning-rate factor, parameters). `probe` returns a line for the log at every checkpoint.
    """
    parts = [{"params": list(ps), "factor": factor} for factor, ps in groups]
    optimizer = torch.optim.AdamW(parts, weight_decay=1e-3, foreach=True)
    params = [p for part in parts for p in part["params"]]
    average = [p.detach().clone() for p in params]
    checkpoint = _Checkpoint(work / f"{stage}.ckpt", model, optimizer)
    start, smooth, began = checkpoint.load(average), None, time.monotonic()
    group.say(f"{stage}: starting at step {start}")
    for step in range(start, recipe.steps):
        torch.manual_seed((SEED + sum(map(ord, stage)) * 1_000_003 + step) * 64 + group.rank)
        for g in optimizer.param_groups:
            g["lr"] = recipe.rate * g["factor"] * _schedule(step, recipe.steps)
        loss = loss_of(step, recipe.batch)
        _descend(loss, optimizer, params, group)
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - min(0.998, (1 + step) / (20 + step)))
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        done = step + 1
        if done % 50 == 0:
            pace = (time.monotonic() - began) / (done - start)
            group.say(f"{stage} {done}/{recipe.steps} loss {smooth:.4f} {pace:.2f} s/step")
        if done % CHECKPOINT_EVERY == 0 or done == recipe.steps:
            if group.rank == 0:
                checkpoint.save(average, done)
            if probe is not None:
                group.say(f"{stage} {done}: {_probe_average(probe, average, params)}")
    _copy(average, params)


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: 50 steps of warm-up, constant, then linear decay over the last 40 %."""
    return min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - step / steps) / 0.4))


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, params: list[nn.Parameter], group: Group) -> None:
    optimizer.zero_grad()
    loss.backward()
    group.average_gradients(params)
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()


class _Checkpoint:
    def __init__(self, file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._file, self._model, self._optimizer = file, model, optimizer

    def load(self, average: list[Tensor]) -> int:
        """Restore model, optimizer and `average`. Returns the next step: 0 without a checkpoint."""
        if not self._file.exists():
            return 0
        saved = torch.load(self._file, weights_only=True)
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        average[:] = saved["average"]
        return saved["step"]

    def save(self, average: list[Tensor], step: int) -> None:
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        partial = self._file.with_suffix(".tmp")
        torch.save({**state, "average": average, "step": step}, partial)
        partial.rename(self._file)


def _probe_average(probe: Callable[[], str], average: list[Tensor], params: list[nn.Parameter]) -> str:
    live = [p.detach().clone() for p in params]
    _copy(average, params)
    text = probe()
    _copy(live, params)
    return text


@torch.no_grad()
def _copy(source: list[Tensor], target: list[nn.Parameter]) -> None:
    for s, t in zip(source, target, strict=True):
        t.copy_(s)
