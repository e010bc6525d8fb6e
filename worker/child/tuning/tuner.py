"""Measures configurations one after the other, and takes the fastest that computes the same."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from service.catalog.family_components import WAN, is_transformer
from service.catalog.optimise import Optimise
from worker.child.failures import is_broken
from worker.child.tuning.record import Measured, TuningRecord
from worker.networks.loading import AnyModels

log = logging.getLogger("ivmix.child")

GATE = 1.2  # times the error of the first configuration
FLOOR = 1e-5  # relative; allowed even if that one runs in float32, for different rounding
MIN_GAIN = 0.02  # a smaller one is within the noise of the measurement
COMPILE_S = 30.0  # a first compilation is expected to take so long
PACKAGES = {"flash": "flash_attn", "_flash_3": "flash_attn_interface"}
Changes = Mapping[str, Any]


class Calls(Protocol):
    """See `MeasuredCalls`."""

    @property
    def per_clip(self) -> Mapping[str, int]: ...

    def use(self, optimise: Optimise) -> None: ...
    def predictions(self) -> Mapping[str, Tensor]: ...
    def milliseconds(self) -> Mapping[str, float]: ...


def candidates(models: AnyModels) -> list[Changes]:
    """What is tried, each as changes of the fastest before it. Compiling comes last: it may use up the time."""
    has_unets, on_gpu = not is_transformer(models.entry.family), models.device.type == "cuda"
    backends = ["_native_cudnn", "_native_flash", "_native_efficient"] if on_gpu else ["_native_math"]
    if on_gpu and models.entry.family == WAN:
        backends = [*(name for name, package in PACKAGES.items() if find_spec(package)), *backends]
    found: list[Changes] = [{"attention_backend": name} for name in backends]
    if not models.entry.memory.halves_apart:  # else they are apart already
        found.append({"guidance_halves": "apart"})
    if has_unets:
        found += [{"channels_last": True}, {"compile": True}, {"compile": True, "channels_last": True}]
    else:
        found.append({"compile": True})
    return found


@dataclass
class Tuner:
    """
    Args:
        calls: what is measured. The first configuration is the one of `record`.
        reference: the predictions in float32.
        device: where the networks are.
        limit_s: after so many seconds no configuration is begun.
        save: called with the record before and after every configuration.
    """

    calls: Calls
    reference: Mapping[str, Tensor]
    device: torch.device
    limit_s: float
    save: Callable[[TuningRecord], None]
    began: float = field(default_factory=time.monotonic)
    _applied: Optimise | None = None
    _seconds: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: COMPILE_S})

    def run(self, record: TuningRecord, tried: Sequence[Changes]) -> TuningRecord:
        """Returns the finished record; the networks run as it says. Raises what leaves the device unusable."""
        record = self._add(record, record.chosen)
        best, allowed = record.results[0], GATE * (record.results[0].error or 0.0)
        for changes in tried if not best.problem else ():
            optimise = best.optimise.model_copy(update=dict(changes))
            if any(known.optimise == optimise for known in record.results):
                continue
            record = self._add(record, optimise, max(FLOOR, allowed))
            if _is_faster(record.results[-1], best):
                best = record.results[-1]
                record = record.model_copy(update={"chosen": best.optimise})
        if self._applied != best.optimise:  # else what is compiled would be thrown away
            self.calls.use(best.optimise)
        record = record.model_copy(update={"trying": None, "seconds": self._elapsed})
        self.save(record)
        return record

    def _add(self, record: TuningRecord, optimise: Optimise, allowed: float = 1.0) -> TuningRecord:
        """The record with one more result."""
        record = record.model_copy(update={"trying": optimise, "seconds": self._elapsed})
        self.save(record)
        left = self.limit_s - self._elapsed
        if record.results and left < self._seconds[optimise.compile]:
            result = Measured(optimise=optimise, problem=f"not tried: {max(left, 0):.0f} s were left")
        else:
            result = self._measure(optimise, allowed)
        return record.model_copy(update={"results": (*record.results, result)})

    def _measure(self, optimise: Optimise, allowed: float) -> Measured:
        began = time.monotonic()
        self._applied = None
        try:
            self.calls.use(optimise)
            self._applied = optimise
            error = _distance(self.calls.predictions(), self.reference)
            if not error <= allowed:  # and NaN
                return Measured(optimise=optimise, error=_finite(error), problem=_wrong(error, allowed))
            times = self.calls.milliseconds()
        except Exception as e:
            if is_broken(e, self.device):
                raise
            reason = " ".join(str(e).split())[:300]
            log.info("%s cannot be measured", optimise, exc_info=e)
            return Measured(optimise=optimise, problem=f"{type(e).__name__}: {reason}")
        self._seconds[optimise.compile] = max(self._seconds[False], time.monotonic() - began)
        seconds = sum(times[name] * count for name, count in self.calls.per_clip.items() if count) / 1000
        return Measured(optimise=optimise, milliseconds=dict(times), seconds_per_clip=seconds, error=error)

    @property
    def _elapsed(self) -> float:
        return round(time.monotonic() - self.began, 1)


def _is_faster(one: Measured, other: Measured) -> bool:
    if one.seconds_per_clip is None or other.seconds_per_clip is None:
        return False
    return one.seconds_per_clip < (1 - MIN_GAIN) * other.seconds_per_clip


def _distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest relative L2 distance of all calls; NaN if one is not finite."""
    squares = [
        (found[name].float() - x.float()).square().sum() / x.float().square().sum() for name, x in expected.items()
    ]
    return float(torch.stack(squares).max().sqrt())  # max returns NaN if there is one


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _wrong(error: float, allowed: float) -> str:
    if _finite(error) is None:
        return "its predictions are not finite"
    return f"differs by {error:.1e} from float32, allowed are {allowed:.1e}"
