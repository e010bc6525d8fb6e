"""The public contract as text: `python -m service.api.openapi > openapi.yaml`. A test holds the file equal to it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import yaml

from service.api.app import create_app
from service.settings import Settings
from service.wiring import open_services


def contract_yaml() -> str:
    """The same on every machine: from the default settings, whatever the environment says."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_construct(redis_url="redis://127.0.0.1:1", data_dir=Path(folder))
        app = create_app(open_services(settings))
    plain = json.loads(json.dumps(app.openapi()))  # yaml would write what is shared as anchors
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.stdout.write(contract_yaml())
