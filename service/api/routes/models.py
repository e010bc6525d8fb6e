"""/v1/models: what this server can draw with, as the SDKs list it, and what each model can do."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.auth import Reader, Wired
from service.api.errors import responses
from service.api.schemas import Model, ModelList

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", summary="Models and what they can do", responses=responses(401, 403))
def list_models(_reader: Reader, services: Wired) -> ModelList:
    entries = (services.models.get(model) for model in services.models.ids())
    return ModelList(data=[Model.model_validate(entry) for entry in entries])


@router.get("/models/{model}", summary="One model", responses=responses(401, 403, 404))
def retrieve_model(model: str, _reader: Reader, services: Wired) -> Model:
    return Model.model_validate(services.models.get(model))
