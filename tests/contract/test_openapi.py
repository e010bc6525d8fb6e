from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai.types
import openai.types.webhooks
import pytest
import yaml
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.api.openapi.__main__ import openapi_yaml
from service.jobs.model import EVENT_TYPES
from service.jobs.request import VideoRequest

FILE = Path(__file__).parents[2] / "openapi.yaml"


def committed() -> dict[str, Any]:
    """The committed file, by the parser in C: the other one takes a quarter of a second."""
    return yaml.load(FILE.read_text(), yaml.CSafeLoader)


def test_the_committed_file_is_up_to_date() -> None:
    assert FILE.read_text() == openapi_yaml(), "run: python -m service.api.openapi > openapi.yaml"


def test_the_contract_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_MODELS", "/nowhere.toml")
    monkeypatch.setenv("IVMIX_STORAGE", "s3")
    assert openapi_yaml() == FILE.read_text()


def test_every_field_of_a_request_is_described() -> None:
    described = committed()["components"]["schemas"]["VideoRequest"]
    assert set(described["properties"]) == set(VideoRequest.model_fields)
    assert described["required"] == ["prompt"]


def test_all_three_encodings_are_described() -> None:
    body = committed()["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data", "application/x-www-form-urlencoded"}


def test_a_video_always_has_every_key_of_openais() -> None:
    required = set(committed()["components"]["schemas"]["Video"]["required"])
    assert set(openai.types.Video.model_fields) <= required


def dereference(node: Any, components: dict[str, Any]) -> Any:
    """The node with every reference replaced, except those to schemas."""
    if isinstance(node, list):
        return [dereference(value, components) for value in node]
    if not isinstance(node, dict):
        return node
    kind, _, name = node["$ref"].removeprefix("#/components/").partition("/") if "$ref" in node else ("schemas", "", "")
    if kind != "schemas":
        return dereference(components[kind][name], components)
    return {key: dereference(value, components) for key, value in node.items()}


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    document = committed()
    for path in dereference(document["paths"], document["components"]).values():
        for operation in path.values():
            yield operation["operationId"], operation


def test_every_error_has_the_same_shape_and_an_example() -> None:
    for _, operation in operations():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
                assert set(content["example"]["error"]) == {"message", "type", "param", "code"}


def test_the_document_is_valid_openapi() -> None:
    document = committed()
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_example_is_valid_and_every_json_response_has_one() -> None:
    document = committed()
    checked = 0
    for name, operation in operations():
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for body in [*bodies, *operation["responses"].values()]:
            for kind, content in body.get("content", {}).items():
                examples = [example["value"] for example in content.get("examples", {}).values()]
                examples += [content["example"]] if "example" in content else []
                assert examples or "json" not in kind, f"{name}: no example of {kind}"
                for example in examples:
                    schema = content["schema"] | {"components": document["components"]}
                    Draft202012Validator(schema, format_checker=FormatChecker()).validate(example)
                    checked += 1
    assert checked > 50


def test_every_response_lists_its_headers() -> None:
    for name, operation in operations():
        for status, response in operation["responses"].items():
            headers = response["headers"]
            assert "x-request-id" in headers, (name, status)
            assert ("retry-after" in headers) == (status in ("429", "503")), (name, status)
            assert ("www-authenticate" in headers) == (status == "401"), (name, status)
            assert all(header["description"] for header in headers.values())


def test_operations_that_need_a_key_say_so() -> None:
    for name, operation in operations():
        needs_key = operation["tags"] != ["health"]
        assert ("security" in operation) == needs_key, name
        assert ({"401", "403"} <= set(operation["responses"])) == needs_key, name


def test_a_server_without_authentication_does_not_describe_api_keys(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "securitySchemes" not in described["components"]
    assert "401" not in described["paths"]["/v1/videos"]["get"]["responses"]


def test_every_reference_resolves() -> None:
    document = committed()

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for value in node for ref in references(value)] if isinstance(node, list) else []

    names = {tuple(ref.removeprefix("#/components/").split("/")) for ref in references(document)}
    assert {kind for kind, _ in names} == {"schemas", "headers", "responses", "examples"}
    assert names <= {(kind, name) for kind, parts in document["components"].items() for name in parts}


def test_webhook_requests_are_described() -> None:
    document = committed()
    assert set(document["webhooks"]) == set(EVENT_TYPES)
    for event in document["webhooks"].values():
        headers = {parameter["name"] for parameter in event["post"]["parameters"]}
        assert headers == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        body = event["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/WebhookEvent"}


def test_the_endpoints_are_those_of_the_sdk() -> None:
    """What client.webhooks of openai 3.54 calls, and every key of what it reads."""
    document = committed()
    calls = {(method, path) for path, operations in document["paths"].items() for method in operations}
    one = "/v1/webhook_endpoints/{webhook_endpoint_id}"
    assert {
        ("post", "/v1/webhook_endpoints"),
        ("get", "/v1/webhook_endpoints"),
        *((method, one) for method in ("get", "post", "delete")),
        ("post", f"{one}/rotate_secret"),
        ("post", f"{one}/test"),
        ("get", "/v1/webhook_event_types"),
    } <= calls
    schemas = document["components"]["schemas"]
    for ours, theirs in {
        "WebhookEndpoint": openai.types.webhooks.WebhookEndpoint,
        "WebhookEndpointWithSecret": openai.types.webhooks.WebhookEndpointWithSecret,
        "DeletedWebhookEndpoint": openai.types.webhooks.DeletedWebhookEndpoint,
        "WebhookEndpointTest": openai.types.webhooks.WebhookEndpointTestResult,
        "WebhookEventTypeList": openai.types.webhooks.WebhookEventTypeList,
    }.items():
        assert set(theirs.model_fields) <= set(schemas[ours]["required"])
