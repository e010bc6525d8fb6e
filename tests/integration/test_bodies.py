"""Bodies that are too large, compressed or of another kind, and media in fields that no model takes."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient

from service.api.body_reader import MEDIA_FIELDS
from tests.factories import PROMPT

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20_000  # 5 MB
BASE64_IMAGE = "data:image/png;base64," + "iVBORw0K" * 600_000
CJK, EMOJI, NUL = "\u7e41", "\U0001f600", "\x00"


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    return answer.json()["error"]


class TestImages:
    """Against a real server: the answer must arrive although the client is still sending."""

    def test_a_file_of_five_megabytes_is_refused_with_the_right_field(self, server: str) -> None:
        for path in ("/v1/videos", "/v1/videos/sync"):
            answer = httpx2.post(
                server + path, data={"prompt": PROMPT}, files={"image_reference": ("a.png", IMAGE, "image/png")}
            )
            error = error_of(answer, 400)
            assert (error["param"], error["code"]) == ("image_reference", "unsupported_parameter")
            assert "send a picture or clip as 'input_reference'" in error["message"]

    @pytest.mark.parametrize("value", [BASE64_IMAGE, {"image_url": BASE64_IMAGE}, [BASE64_IMAGE], "https://a/b.png"])
    @pytest.mark.parametrize("name", MEDIA_FIELDS)
    def test_in_json(self, server: str, name: str, value: Any) -> None:
        error = error_of(httpx2.post(f"{server}/v1/videos", json={"prompt": PROMPT, name: value}), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")

    @pytest.mark.parametrize("name", ["image_reference", "image_reference[image_url]"])
    @pytest.mark.parametrize("encoding", ["urlencoded", "multipart", "chunked"])
    def test_as_text_in_a_form(self, server: str, name: str, encoding: str) -> None:
        fields = {"prompt": PROMPT, name: BASE64_IMAGE}
        request = httpx2.Request("POST", f"{server}/v1/videos", data=fields)
        if encoding != "urlencoded":
            request = httpx2.Request(
                "POST", f"{server}/v1/videos", files={field: (None, text) for field, text in fields.items()}
            )
        if encoding == "chunked":
            body, kind = request.read(), request.headers["content-type"]
            request = httpx2.Request(
                "POST", f"{server}/v1/videos", content=iter([body]), headers={"content-type": kind}
            )
        with httpx2.Client() as client:
            error = error_of(client.send(request), 400)
        assert error["param"].startswith("image_reference")

    def test_it_is_refused_before_its_bytes_arrive(self, server: str) -> None:
        """The client sends the head of the file, then waits for the answer before it goes on."""
        head = (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na circle\r\n--x\r\n'
            b'Content-Disposition: form-data; name="image_reference"; filename="a.png"\r\n\r\n'
        )
        assert _answer_before_the_end(f"{server}/v1/videos", head, "multipart/form-data; boundary=x") == 400
        head = b'{"prompt": "a circle", "image_reference": "data:image/png;base64,iVBORw0K'
        assert _answer_before_the_end(f"{server}/v1/videos", head, "application/json") == 400

    def test_an_empty_file_field_is_no_file(self, client: TestClient) -> None:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + PROMPT.encode() + b"\r\n--x\r\n"
            b'Content-Disposition: form-data; name="input_reference"; filename=""\r\n\r\n\r\n--x--\r\n'
        )
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert client.post("/v1/videos", content=body, headers=headers).status_code == 200

    def test_other_fields_of_that_name_are_no_image(self, client: TestClient) -> None:
        given = {"prompt": PROMPT, "input_reference": None, "metadata": {"input_reference": "x"}}
        assert client.post("/v1/videos", json=given).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [
            json.dumps({"prompt": 'a "input_reference": "x' + "y" * 1_100_000}),
            json.dumps({"prompt": PROMPT, "input_reference": "", "user": "y" * 1_100_000}),
        ],
    )
    def test_a_text_about_images_is_only_too_large(self, client: TestClient, body: str) -> None:
        answer = client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
        assert error_of(answer, 413)["code"] == "body_too_large"


def _answer_before_the_end(url: str, head: bytes, kind: str) -> int:
    """The status of a request whose announced body never arrives."""
    target = urlsplit(url)
    with socket.create_connection((target.hostname, target.port), timeout=20) as connection:
        request = f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: {kind}\r\n"
        connection.sendall(f"{request}Content-Length: 5000000\r\n\r\n".encode() + head)
        return int(connection.makefile("rb").readline().split()[1])


class TestSize:
    @pytest.mark.parametrize("letter", [CJK, EMOJI, NUL, "a"])
    @pytest.mark.parametrize("encode", ["json", "escaped", "urlencoded", "multipart"])
    def test_two_texts_of_32000_characters_fit_in_any_script(
        self, client: TestClient, letter: str, encode: str
    ) -> None:
        fields = {"prompt": letter * 32_000, "negative_prompt": letter * 32_000}
        send: dict[str, Callable[[], httpx2.Response]] = {
            "json": lambda: client.post("/v1/videos", json=fields),
            "escaped": lambda: client.post(
                "/v1/videos", content=json.dumps(fields), headers={"content-type": "application/json"}
            ),
            "urlencoded": lambda: client.post("/v1/videos", data=fields),
            "multipart": lambda: client.post("/v1/videos", files={name: (None, text) for name, text in fields.items()}),
        }
        error = error_of(send[encode](), 400)  # the demo model reads 200 characters
        assert (error["param"], error["code"]) == ("prompt", "string_above_max_length")
        assert "prompt has 32000 characters" in error["message"]

    def test_more_than_the_limit_is_refused(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/videos", json={"prompt": "a" * 2**20}), 413)
        assert (error["code"], str(2**20) in error["message"]) == ("body_too_large", True)


class TestEncodings:
    @pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync", "/v1/webhook_endpoints"])
    @pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "gzip, identity", "x" * 200])
    def test_a_compressed_body_is_415(self, client: TestClient, path: str, encoding: str) -> None:
        body = gzip.compress(json.dumps({"prompt": PROMPT}).encode())
        headers = {"content-type": "application/json", "content-encoding": encoding}
        error = error_of(client.post(path, content=body, headers=headers), 415)
        assert error["code"] == "unsupported_media_type"
        assert f"Content-Encoding '{encoding[:40]}'" in error["message"]

    def test_identity_is_no_compression(self, client: TestClient) -> None:
        headers = {"content-encoding": "identity"}
        assert client.post("/v1/videos", json={"prompt": PROMPT}, headers=headers).status_code == 200

    @pytest.mark.parametrize("kind", ["text/plain", "application/xml", "image/png", "json", "text/x+json", ""])
    @pytest.mark.parametrize("path", ["/v1/videos", "/v1/webhook_endpoints"])
    def test_another_content_type_is_415_and_named(self, client: TestClient, path: str, kind: str) -> None:
        error = error_of(client.post(path, content=b'{"prompt": "a"}', headers={"content-type": kind}), 415)
        assert error["code"] == "unsupported_media_type"
        assert "application/json" in error["message"]
        assert kind in error["message"]
