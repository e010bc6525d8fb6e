"""GET /v1/models: the available models and their limits."""

from __future__ import annotations

from fastapi import APIRouter
from redis.exceptions import RedisError

from service.api.auth import Reader, ServicesDep
from service.api.openapi.responses import errors, success
from service.api.schemas import Model, ModelList
from service.errors import ModelUnavailable
from service.jobs.model_loads import ModelLoads
from service.wiring import Services

router = APIRouter(prefix="/v1", tags=["models"])


@router.get(
    "/models",
    summary="List models",
    description="A model that no worker can load is left out, until a worker has loaded it.",
    responses=success("ModelList"),
)
def list_models(_reader: Reader, services: ServicesDep) -> ModelList:
    names = services.models.ids()
    failures = _load_failures(services, *names)
    entries = (services.models.get(model) for model in names if model not in failures)
    return ModelList(data=[Model.model_validate(entry) for entry in entries])


@router.get(
    "/models/{model}",
    summary="Retrieve a model",
    description="503 `model_unavailable`: no worker can load the model; `message` has the reason.",
    responses=success("Model") | errors(404),
)
def retrieve_model(model: str, _reader: Reader, services: ServicesDep) -> Model:
    entry = services.models.get(model)
    if reason := _load_failures(services, entry.id).get(entry.id):
        raise ModelUnavailable(entry.id, reason)
    return Model.model_validate(entry)


def _load_failures(services: Services, *models: str) -> dict[str, str]:
    """Without Redis the registry alone answers, and soon."""
    try:
        return ModelLoads(services.probe).failures(models)
    except RedisError:
        return {}
