import pytest

from service.models import ModelRegistry
from service.settings import DEMO_MODEL
from worker.engine import Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real demo models."""
    return Engine(ModelRegistry.load([DEMO_MODEL]).get())
