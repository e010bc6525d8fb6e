"""Applications in one process share their OpenAPI document: making it takes 0.1 s, longer than most requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.api.app import create_app
from service.wiring import Services

# By the settings: routes and authentication depend on some of them. Folders and queue of a test change nothing.
DOCUMENTS: dict[str, dict[str, Any]] = {}
OF_ONE_TEST = {"redis_url", "data_dir", "weights_dir"}


def quick_app(services: Services) -> FastAPI:
    app = create_app(services)
    make = app.openapi
    key = services.settings.model_dump_json(exclude=OF_ONE_TEST)

    def openapi() -> dict[str, Any]:
        if key not in DOCUMENTS:
            DOCUMENTS[key] = make()
        return DOCUMENTS[key]

    app.openapi = openapi  # type: ignore[method-assign]
    return app
