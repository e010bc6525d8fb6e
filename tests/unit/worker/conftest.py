import pytest

from service.registry import ModelRegistry
from worker.engine import Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real demo models."""
    return Engine(ModelRegistry.load().get("demo"))
