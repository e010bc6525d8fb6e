"""Prints the OpenAPI description: `python -m service.api.openapi > openapi.yaml`. A test compares the two."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import yaml

from service.api.app import create_app
from service.settings import Settings
from service.wiring import open_services


def openapi_yaml() -> str:
    """Made from the default settings, so that it does not depend on the environment."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_construct(redis_url="redis://127.0.0.1:1", data_dir=Path(folder))
        app = create_app(open_services(settings))
    plain = json.loads(json.dumps(app.openapi()))  # otherwise YAML would write shared objects as anchors
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.stdout.write(openapi_yaml())
