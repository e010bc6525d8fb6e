"""Tuning with the real networks of a tiny model: which configuration is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from service.catalog.optimise import Optimise
from tests.fake_configurations import (
    APART,
    FAST,
    LIMIT_S,
    OTHER,
    FakeConfigurations,
    Fault,
    adds,
    costs_nothing,
    gives_nan,
    runs_out,
)
from tests.unit.worker.tuning.conftest import Load
from worker.child.tuning.float32 import float32
from worker.child.tuning.record import TuningKey, TuningRecord
from worker.child.tuning.start import tune
from worker.child.tuning.tuner import MIN_GAIN, Tuner, candidates
from worker.networks.loading import load as load_models
from worker.networks.models import Models
from worker.networks.network_classes import errors_only

RELAID = "channels_last=true"
BOTH = f"{RELAID}, {APART}"


def measure(engine: FakeConfigurations, *tried: Any) -> TuningRecord:
    return tune(engine, LIMIT_S, tried=tried, clock=engine.clock)


def test_fastest_configuration_is_taken_and_run(load: Load) -> None:
    tuned = load()
    record = measure(tuned, OTHER, FAST)
    assert record.chosen == Optimise(guidance_halves="apart") == tuned.configuration.optimise
    assert tuned.models.optimise == record.chosen
    first, _, best = record.results
    assert first.milliseconds == pytest.approx({"image": 30, "video": 30})
    assert first.seconds_per_clip == pytest.approx(
        0.03 * sum(tuned.plan(tuned.models.entry.default_generation).calls.values())
    )
    assert best.seconds_per_clip == 0
    assert not any(result.problem for result in record.results)
    assert all(result.error is not None and result.error < 1e-5 for result in record.results)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (adds, "differs by 1.0e-02 from float32, allowed are 1.0e-05"),
        (gives_nan, "its predictions are not finite"),
        (runs_out, "OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_configuration_with_a_fault_is_listed_with_its_reason_and_not_taken(
    load: Load, fault: Fault, reason: str
) -> None:
    tuned = load({APART: fault, RELAID: costs_nothing})
    record = measure(tuned, FAST, OTHER)
    assert [result.problem for result in record.results] == ["", reason, ""]
    assert record.chosen == Optimise(channels_last=True) == tuned.models.optimise


def test_later_configurations_change_the_fastest_before_them_and_none_is_measured_twice(
    load: Load,
) -> None:
    tuned = load(
        {
            APART: costs_nothing,
        }
    )
    record = measure(tuned, FAST, OTHER, FAST, {"channels_last": False})
    assert [str(result.optimise) for result in record.results] == ["default", APART, BOTH]
    assert record.chosen == tuned.models.optimise == Optimise(guidance_halves="apart")


def test_nothing_is_tuned_where_the_first_configuration_cannot_be_measured(
    load: Load,
) -> None:
    tuned = load({"default": runs_out, APART: costs_nothing})
    record = measure(tuned, FAST)
    assert record.is_finished
    assert record.chosen == Optimise() == tuned.configuration.optimise
    assert [result.problem for result in record.results] == ["OutOfMemoryError: CUDA out of memory"]


def test_no_configuration_begins_after_the_limit(load: Load) -> None:
    record = tune(load(), 0.0, tried=[FAST])
    assert [result.problem for result in record.results] == ["", "not tried: 0 s were left"]
    assert record.chosen == Optimise()


class GivenTimes:
    """Calls that take as long as the test says, in milliseconds by configuration."""

    per_clip = {"image": 100, "video": 0}

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.used = times, list[str]()

    def use(self, optimise: Optimise) -> None:
        self.used.append(str(optimise))

    def predictions(self) -> dict[str, torch.Tensor]:
        return {"image": torch.ones(3)}

    def milliseconds(self) -> dict[str, float]:
        return {"image": self.times[self.used[-1]]}


@pytest.mark.parametrize(("gain", "taken"), [(MIN_GAIN / 2, "default"), (2 * MIN_GAIN, APART)])
def test_gain_within_the_noise_changes_nothing(load: Load, gain: float, taken: str) -> None:
    calls = GivenTimes({"default": 100.0, APART: 100 * (1 - gain)})
    key = TuningKey.of(load())
    tuner = Tuner(calls, calls.predictions(), torch.device("cpu"), LIMIT_S, lambda _record: None)
    record = tuner.run(TuningRecord(key=key, chosen=Optimise(), measured_frames=1), [FAST])
    assert str(record.chosen) == calls.used[-1] == taken
    assert record.results[0].seconds_per_clip == 10.0


def in_bfloat16(engine: FakeConfigurations) -> FakeConfigurations:
    """As on a GPU."""
    engine.models = replace(half_precision(engine), dtype=torch.bfloat16)
    return engine


def half_precision(engine: FakeConfigurations) -> Models:
    found = load_models(engine.models.entry, "cpu")
    assert isinstance(found, Models)
    for unet in found.unets:
        with errors_only("diffusers"):
            unet.to(torch.bfloat16)
    return found


def test_half_precision_may_differ_from_float32_as_much_as_its_own_rounding(
    load: Load,
) -> None:
    tuned = in_bfloat16(load({APART: adds, RELAID: costs_nothing}))
    first, wrong, right = measure(tuned, FAST, OTHER).results
    assert first.error is not None
    assert 1e-3 < first.error < 2e-2
    assert wrong.problem.endswith(f"allowed are {1.2 * first.error:.1e}")
    assert right.error is not None
    assert not right.problem
    assert tuned.models.optimise == right.optimise


@torch.no_grad()
def test_reference_is_what_float32_gives_with_the_same_weights(loaded: FakeConfigurations) -> None:
    half, whole = half_precision(loaded).image_unet, half_precision(loaded).image_unet.float()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    with float32():
        found = half(x, torch.tensor(500), encoder_hidden_states=text.bfloat16()).sample
    expected = whole(x, torch.tensor(500), encoder_hidden_states=text.bfloat16().float()).sample
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)
    assert next(half.parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_candidates_are_few_and_compile_last(loaded: FakeConfigurations, device: str) -> None:
    found = candidates(replace(loaded.models, device=torch.device(device)))  # type: ignore[type-var]
    assert 4 <= len(found) <= 7
    compiled = [bool(changes.get("compile")) for changes in found]
    assert compiled == sorted(compiled)
    for changes in found:
        Optimise.model_validate(changes)
