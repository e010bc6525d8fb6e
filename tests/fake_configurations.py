"""An engine with the real networks of a tiny model, where some configurations have a known cost or a fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.settings import Settings
from tests.tiny_models import write_entry
from worker.child.engine import Engine
from worker.child.main import start
from worker.child.tuning.start import tune_at_start, use_stored
from worker.messages import Tuning

COST_S, LIMIT_S = 0.03, 3600.0
Fault = Callable[[Tensor], Tensor]
FAST, OTHER = {"guidance_halves": "apart"}, {"channels_last": True}  # changes of a configuration
APART = 'guidance_halves="apart"'  # the text of FAST


class Clock:
    """Advanced by the calls of networks only: a busy machine costs nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def costs_nothing(x: Tensor) -> Tensor:
    return x


def adds(x: Tensor) -> Tensor:
    """Fast, but another result."""
    return x + 1e-2 * x.norm() / x.numel() ** 0.5


def runs_out(_x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def gives_nan(x: Tensor) -> Tensor:
    return x * torch.nan


class FakeConfigurations(Engine):
    """Every configuration costs COST_S per call, those in `faults`, by their text, nothing."""

    def __init__(self, entry: ModelEntry, faults: Mapping[str, Fault]) -> None:
        super().__init__(entry, torch.device("cpu"))
        self.faults, self.clock = faults, Clock()

    def denoisers(self, *args: Any, **kwargs: Any) -> Any:
        found = super().denoisers(*args, **kwargs)
        fault = self.faults.get(str(self.configuration.optimise), self.costs)
        for denoiser in found:
            denoiser.unet = _Changed(denoiser.unet, fault)
        return found

    def costs(self, x: Tensor) -> Tensor:
        self.clock.seconds += COST_S
        return x


class _Changed:
    def __init__(self, network: Any, fault: Fault) -> None:
        self.network, self.fault, self.native_cfg = network, fault, network.native_cfg

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self.network(*args, **kwargs)
        return self.fault(found if isinstance(found, Tensor) else found.sample)


def enter_hanging(control: Connection, settings: Settings, _model: str) -> None:
    """A child that tunes: the second configuration is faster than the first, the third never returns."""

    def hangs(x: Tensor) -> Tensor:
        control.send(Tuning(0.5))  # not before: a busy machine may need long for the others
        time.sleep(3600)
        return x

    def load() -> Engine:
        entry = write_entry(Path(settings.weights_dir) / "model", "animatediff")
        faults = {APART: costs_nothing, f"channels_last=true, {APART}": hangs}
        engine = FakeConfigurations(entry, faults)
        if not use_stored(engine, entry, settings):
            tune_at_start(engine, settings, settings.tune_s, lambda _s: None, [FAST, OTHER], engine.clock)
        return engine

    start(control, settings, load)
