"""Fields that the openai SDK passes on, and redirects that it follows; whole applications: test_openai_sdks.py."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from tests.api_calls import services_for
from tests.conftest import serve
from tests.factories import PROMPT, finish

# OpenAI has shut down its video API; its SDK still supports the format.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def api(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def test_extensions_travel_in_extra_body(api: openai.OpenAI) -> None:
    extras = {"seed": 5, "sampler": {"name": "zigzag", "interval": [0.2, 0.8]}, "metadata": {"a": "b"}, "n": 1}
    made = api.videos.create(prompt=PROMPT, extra_body=extras)
    assert made.model_extra is not None
    assert (made.model_extra["seed"], made.model_extra["metadata"]) == (5, {"a": "b"})
    assert made.model_extra["sampler"]["name"] == "zigzag"
    assert made.model_extra["sampler"]["interval"] == [0.2, 0.8]


def test_an_error_arrives_with_all_its_fields(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        api.videos.create(prompt=PROMPT, size="720x1280")
    error = raised.value
    assert (error.code, error.param, error.type) == ("invalid_value", "size", "invalid_request_error")
    assert "384x384" in error.message


def test_on_s3_the_client_is_sent_to_the_bucket(s3: Settings, tmp_path: Path) -> None:
    with services_for(s3) as services, serve(services) as url:
        api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        made = api.videos.create(prompt=PROMPT)
        finish(services, made.id, b"mp4", scratch=tmp_path)
        answer = TestClient(create_app(services)).get(f"/v1/videos/{made.id}/content", follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(s3.s3_endpoint_url or "")
        assert api.videos.download_content(made.id).read() == b"mp4"
