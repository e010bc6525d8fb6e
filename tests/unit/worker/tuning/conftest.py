from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from service.catalog.optimise import Configuration
from service.settings import Settings
from tests.fake_configurations import APART, FAST, LIMIT_S, Clock, FakeConfigurations, Fault, costs_nothing
from tests.tiny_models import save_model
from worker.child.tuning.record import TuningRecord
from worker.child.tuning.start import tune

Load = Callable[..., FakeConfigurations]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FakeConfigurations:
    return FakeConfigurations(save_model("animatediff", tmp_path_factory.mktemp("tuning") / "model"), {})


@pytest.fixture(scope="session")
def load(loaded: FakeConfigurations) -> Load:
    """load({text of a configuration: fault}) gives what a new process has loaded."""

    def load(faults: Mapping[str, Fault] | None = None) -> FakeConfigurations:
        found = copy.copy(loaded)
        found.use(Configuration.of(None))
        found.faults = {APART: costs_nothing} if faults is None else faults
        found.clock = Clock()
        return found

    return load


@pytest.fixture(scope="session")
def measured(load: Load) -> TuningRecord:
    """A finished record of the model, which took FAST."""
    engine = load()
    return tune(engine, LIMIT_S, tried=[FAST], clock=engine.clock)


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """Settings with a folder for this test."""
    return Settings(data_dir=tmp_path / "data", auth="off")
