import copy
from collections.abc import Callable

import pytest
from rq import Queue

from service.catalog.registry import ModelRegistry
from service.jobs.model import Job
from service.wiring import Services
from tests.factories import make_job
from worker.child.engine import Engine


@pytest.fixture(scope="session")
def loaded_engine() -> Engine:
    """The real demo models."""
    return Engine(ModelRegistry.load().get("demo"))


@pytest.fixture
def engine(loaded_engine: Engine) -> Engine:
    """The loaded models, in an engine that has done nothing yet."""
    return copy.copy(loaded_engine)


@pytest.fixture
def new_job(services: Services, queue: Queue) -> Callable[[], Job]:
    """Creates a job and takes it from the queue, as RQ does before it calls us."""

    def new() -> Job:
        created = services.store.create(make_job(), queue)
        queue.empty()
        return created

    return new


@pytest.fixture
def job(new_job: Callable[[], Job]) -> Job:
    return new_job()
