from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings
from service.wiring import Services
from tests.backups import Command, Deployment, commands_for


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": "keys", "lease_s": 3.0, "beat_s": 1.0})


@pytest.fixture
def deployment(services: Services, tmp_path: Path) -> Deployment:
    return Deployment(services, tmp_path)


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> Command:
    return commands_for(settings, tmp_path)
