"""Requests with a reference, and what they leave."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from service.api.uploads import PREFIX
from service.wiring import Services
from tests.factories import PROMPT
from tests.reference_files import picture

PICTURE = picture()
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def send(client: Any, data: bytes = PICTURE, path: str = "/v1/videos", **fields: Any) -> Any:
    headers = {"idempotency-key": fields.pop("key")} if "key" in fields else {}
    form = {"prompt": PROMPT} | {name: str(value) for name, value in fields.items()}
    return client.post(path, data=form, files={"input_reference": ("any.name", data, "any/type")}, headers=headers)


def made(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def stored(services: Services) -> list[str]:
    return [found.key for found in services.storage.list("references/")]


def left_over(services: Services) -> list[Path]:
    folder = services.settings.upload_folder
    return list(folder.glob(f"{PREFIX}*"))
