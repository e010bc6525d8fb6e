import pytest

from service.catalog.registry import ModelRegistry
from worker.child.engine import Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real demo models."""
    return Engine(ModelRegistry.load().get("demo"))
