"""GET /v1/models: the available models and their limits."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.auth import Reader, ServicesDep
from service.api.openapi.responses import errors, success
from service.api.schemas import Model, ModelList

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", summary="List models", responses=success("ModelList"))
def list_models(_reader: Reader, services: ServicesDep) -> ModelList:
    entries = (services.models.get(model) for model in services.models.ids())
    return ModelList(data=[Model.model_validate(entry) for entry in entries])


@router.get("/models/{model}", summary="Retrieve a model", responses=success("Model") | errors(404))
def retrieve_model(model: str, _reader: Reader, services: ServicesDep) -> Model:
    return Model.model_validate(services.models.get(model))
