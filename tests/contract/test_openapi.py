from __future__ import annotations

from pathlib import Path

import openai.types
import pytest
import yaml

from service.api.openapi import contract_yaml
from service.jobs import VideoRequest

FILE = Path(__file__).parents[2] / "openapi.yaml"


def test_the_committed_contract_is_what_the_code_says() -> None:
    assert FILE.read_text() == contract_yaml(), "run: python -m service.api.openapi > openapi.yaml"


def test_the_contract_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_MODELS", "/nowhere.toml")
    monkeypatch.setenv("IVMIX_STORAGE", "s3")
    assert contract_yaml() == FILE.read_text()


def test_every_field_of_a_request_is_described() -> None:
    described = yaml.safe_load(FILE.read_text())["components"]["schemas"]["VideoRequest"]
    assert set(described["properties"]) == set(VideoRequest.model_fields)
    assert described["required"] == ["prompt"]


def test_all_three_encodings_are_described() -> None:
    body = yaml.safe_load(FILE.read_text())["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data", "application/x-www-form-urlencoded"}


def test_a_video_always_has_every_key_of_openais() -> None:
    required = set(yaml.safe_load(FILE.read_text())["components"]["schemas"]["Video"]["required"])
    assert set(openai.types.Video.model_fields) <= required


def test_every_error_has_the_one_shape() -> None:
    for path in yaml.safe_load(FILE.read_text())["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_every_reference_leads_somewhere() -> None:
    document = yaml.safe_load(FILE.read_text())

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for value in node for ref in references(value)] if isinstance(node, list) else []

    names = {ref.removeprefix("#/components/schemas/") for ref in references(document)}
    assert names <= set(document["components"]["schemas"])
