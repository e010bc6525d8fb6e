import copy

import pytest

from service.catalog.registry import ModelRegistry
from worker.child.engine import Engine


@pytest.fixture(scope="session")
def loaded_engine() -> Engine:
    """The real demo models."""
    return Engine(ModelRegistry.load().get("demo"))


@pytest.fixture
def engine(loaded_engine: Engine) -> Engine:
    """The loaded models, in an engine that has done nothing yet."""
    return copy.copy(loaded_engine)
