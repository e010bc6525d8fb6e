"""What users of similar servers send: other names of fields and models, a random seed of -1, x-api-key, /health."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from service.settings import Settings
from service.wiring import Services
from tests.factories import PROMPT


def created(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={"prompt": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={"prompt": PROMPT} | body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_a_seed_of_minus_one_is_random(client: TestClient) -> None:
    seeds = {created(client, seed=seed)["seed"] for seed in (-1, "-1", -1, -1)}
    assert len(seeds) > 1
    assert min(seeds) >= 0
    source = created(client, seed=7)
    remix = client.post(f"/v1/videos/{source['id']}/remix", json={"prompt": PROMPT, "seed": -1}).json()
    assert remix["seed"] != 7
    assert refused(client, seed=-2)["param"] == "seed"


@pytest.mark.parametrize("duration", [1, 1.0, "1", "1s"])
def test_duration_is_seconds(client: TestClient, duration: object) -> None:
    assert created(client, duration=duration)["seconds"] == "1"


def test_a_duration_that_is_not_possible_names_what_is(client: TestClient) -> None:
    message = refused(client, duration=4)["message"]
    assert "Supported at 8 fps: '1'" in message
    assert "fps=2" in message
    assert created(client, duration=4, fps=2)["seconds"] == "4"
    assert "differ" in refused(client, duration=1, seconds=2)["message"]


@pytest.mark.parametrize(
    "shape",
    [
        {"aspect_ratio": "1:1"},
        {"aspect_ratio": "2:2"},
        {"resolution": "384p"},
        {"resolution": "384x384"},
        {"aspect_ratio": "1:1", "resolution": "384p", "size": "384x384"},
    ],
)
def test_a_shape_that_the_model_has_is_accepted(client: TestClient, shape: dict[str, str]) -> None:
    assert created(client, **shape)["size"] == "384x384"


@pytest.mark.parametrize(
    ("shape", "param", "possible"),
    [
        ({"aspect_ratio": "16:9"}, "aspect_ratio", "1:1 (384x384)"),
        ({"aspect_ratio": "wide"}, "aspect_ratio", "1:1 (384x384)"),
        ({"aspect_ratio": "1:0"}, "aspect_ratio", "1:1 (384x384)"),
        ({"resolution": "720p"}, "resolution", "384p (384x384)"),
        ({"resolution": "4k"}, "resolution", "384p (384x384)"),
        ({"size": "384x384", "aspect_ratio": "16:9"}, "aspect_ratio", "is 1:1"),
        ({"size": "384*384"}, "size", "Supported sizes are: 384x384"),
        ({"size": "big"}, "size", "Supported sizes are: 384x384"),
        ({"size": "auto"}, "size", "Supported sizes are: 384x384"),
    ],
)
def test_another_shape_is_refused_with_what_is_possible(
    client: TestClient, shape: dict[str, str], param: str, possible: str
) -> None:
    error = refused(client, **shape)
    assert error["param"] == param
    assert possible in error["message"]


def test_health_is_readiness(client: TestClient) -> None:
    assert client.get("/health").json() == client.get("/readyz").json() == {"status": "ok"}


class TestModelAliases:
    @pytest.fixture
    def aliased(self, services: Services) -> TestClient:
        settings = Settings.model_validate({**services.settings.model_dump(), "model_aliases": ("sora-2=demo",)})
        return TestClient(create_app(replace(services, settings=settings, models=ModelRegistry.of(settings))))

    def test_the_response_names_the_real_model(self, aliased: TestClient) -> None:
        video = created(aliased, model="sora-2", seed=3)
        assert video["model"] == "demo"
        body = {"prompt": PROMPT, "model": "sora-2"}
        assert aliased.post(f"/v1/videos/{video['id']}/remix", json=body).json()["seed"] == 3

    def test_models_show_it(self, aliased: TestClient) -> None:
        (model,) = aliased.get("/v1/models").json()["data"]
        assert (model["id"], model["aliases"]) == ("demo", ["sora-2"])
        assert aliased.get("/v1/models/sora-2").json() == model

    def test_lists_can_be_filtered_by_it(self, aliased: TestClient) -> None:
        video = created(aliased, model="demo")
        assert [found["id"] for found in aliased.get("/v1/videos?model=sora-2").json()["data"]] == [video["id"]]
        assert aliased.get("/v1/videos?model=sora-3").status_code == 400

    @pytest.mark.parametrize("aliases", [{"x": "nothing"}, {"animatediff": "demo"}])
    def test_a_wrong_alias_ends_the_start(self, aliases: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match=r"IVMIX_MODEL_ALIASES|alias animatediff"):
            ModelRegistry.load(aliases=aliases)


class TestKeyHeader:
    @pytest.fixture
    def client_with_keys(self, services: Services) -> TestClient:
        settings = Settings.model_validate({**services.settings.model_dump(), "auth": "keys"})
        return TestClient(create_app(replace(services, settings=settings)))

    def test_either_header_and_both_if_they_agree(self, client_with_keys: TestClient, services: Services) -> None:
        _, key = services.keys.create("a")
        _, other = services.keys.create("b")
        bearer = f"Bearer {key}"
        cases: list[tuple[dict[str, str], int]] = [
            ({"x-api-key": key}, 200),
            ({"authorization": bearer}, 200),
            ({"x-api-key": key, "authorization": bearer}, 200),
            ({"x-api-key": other, "authorization": bearer}, 401),
            ({"x-api-key": "", "authorization": bearer}, 401),
            ({"x-api-key": key, "authorization": "Basic abc"}, 401),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": ""}, 401),
            ({}, 401),
        ]
        for headers, status in cases:
            assert client_with_keys.get("/v1/videos", headers=headers).status_code == status, headers
