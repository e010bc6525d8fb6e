"""The training loop that all stages of `demo/train.py` share: data-parallel, averaged weights, resumable.

Knows nothing of pictures or networks.
"""

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
    """Data-parallel processes over gloo; one process is a group of one."""

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
    """Minimise `loss_of(step, batch)` and leave the averaged weights (EMA) in `model`.

    `groups` are (learning-rate factor, parameters). Constant rate, then a linear decay over the last 40 % of `steps`.
    Every process draws from a seed made of stage, step and rank, so a resumed run goes on as if never stopped.
    """
    steps, batch, rate = recipe
    rates = [{"params": list(ps), "factor": factor} for factor, ps in groups]
    params = [p for r in rates for p in r["params"]]
    optimizer = torch.optim.AdamW(rates, weight_decay=1e-3, foreach=True)
    average = [p.detach().clone() for p in params]
    file, start, smooth = work / f"{stage}.ckpt", 0, None
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]
        group.say(f"{stage}: going on from step {start}")
    began = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed((SEED + sum(map(ord, stage)) * 1_000_003 + step) * 64 + group.rank)
        decay = min(1.0, max(0.02, (1 - step / steps) / 0.4))
        for g in optimizer.param_groups:
            g["lr"] = rate * g["factor"] * min(1.0, (step + 1) / 50) * decay
        loss = loss_of(step, batch)
        optimizer.zero_grad()
        loss.backward()
        group.average_gradients(params)
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        keep = min(0.998, (1 + step) / (20 + step))
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - keep)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        done = step + 1
        if done % 50 == 0:
            pace = (time.monotonic() - began) / (done - start)
            group.say(
                f"{stage} {done}/{steps} loss {smooth:.4f} {pace:.2f} s/step, {pace * (steps - done) / 60:.0f} min"
            )
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            if group.rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "average": average, "step": done}, file.with_suffix(".tmp"))
                file.with_suffix(".tmp").rename(file)
            if probe is not None:
                live = [p.detach().clone() for p in params]
                _copy(average, params)
                group.say(f"{stage} {done}: {probe()}")
                _copy(live, params)
    _copy(average, params)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[nn.Parameter]) -> None:
    for s, t in zip(source, target, strict=True):
        t.copy_(s)
