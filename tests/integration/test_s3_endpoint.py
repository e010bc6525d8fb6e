"""An endpoint URL that contains the bucket, as consoles of S3 providers show it, against Swift and without a server."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.errors import ConfigurationError
from service.settings import Settings
from service.storage.s3_endpoint import without_bucket
from service.wiring import check_storage, open_storage
from tests.conftest import open_s3
from tests.swift import DOMAIN

STYLES = pytest.mark.parametrize("style", ["path", "virtual", "auto"])


def change(settings: Settings, **fields: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **fields})


@pytest.fixture
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name under `.test` is this machine, as with a wildcard in DNS."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return resolve("127.0.0.1" if str(name).endswith(".test") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def refusal(settings: Settings) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_storage(open_storage(settings))
    return raised.value.message


def assert_names_both(message: str, settings: Settings, url: str) -> None:
    assert f"IVMIX_S3_BUCKET={settings.s3_bucket}" in message
    assert message.endswith(f"set IVMIX_S3_ENDPOINT_URL={url}")
    assert "create" not in message


@STYLES
@pytest.mark.parametrize("server", ["s3", "swift", "swift_tls"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bucket_in_the_path_is_named(request: pytest.FixtureRequest, server: str, style: str, slash: str) -> None:
    settings: Settings = request.getfixturevalue(server)
    url = f"{settings.s3_endpoint_url}/{settings.s3_bucket}{slash}"
    message = refusal(change(settings, s3_endpoint_url=url, s3_addressing_style=style))
    assert_names_both(message, settings, str(settings.s3_endpoint_url))


@STYLES
@pytest.mark.usefixtures("_names")
def test_a_bucket_in_the_host_is_named(swift: Settings, style: str) -> None:
    port = urlsplit(str(swift.s3_endpoint_url)).port
    url = f"http://{swift.s3_bucket}.{DOMAIN}:{port}"
    message = refusal(change(swift, s3_endpoint_url=url, s3_addressing_style=style))
    assert_names_both(message, swift, f"http://{DOMAIN}:{port}")


@pytest.mark.usefixtures("_names")
def test_a_certificate_for_another_host_is_explained_by_the_bucket(swift_tls: Settings) -> None:
    port = urlsplit(str(swift_tls.s3_endpoint_url)).port
    url = f"https://{swift_tls.s3_bucket}.{DOMAIN}:{port}"
    assert_names_both(refusal(change(swift_tls, s3_endpoint_url=url)), swift_tls, f"https://{DOMAIN}:{port}")


def test_an_unreachable_host_with_the_bucket_is_logged_with_it(
    swift: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    check_storage(open_storage(change(swift, s3_endpoint_url=f"http://127.0.0.1:9/{swift.s3_bucket}")))
    assert "is unreachable" in caplog.text
    assert "set IVMIX_S3_ENDPOINT_URL=http://127.0.0.1:9" in caplog.text


def test_other_refusals_keep_their_reason(swift: Settings) -> None:
    url = f"{swift.s3_endpoint_url}/{swift.s3_bucket}"
    assert "IVMIX_S3_SECRET_ACCESS_KEY" in refusal(change(swift, s3_endpoint_url=url, s3_secret_access_key="wrong"))


def test_the_check_leaves_nothing_in_the_bucket(swift: Settings) -> None:
    refusal(change(swift, s3_endpoint_url=f"{swift.s3_endpoint_url}/{swift.s3_bucket}"))
    with closing(open_s3(swift)) as admin:
        assert "Contents" not in admin.list_objects_v2(Bucket=swift.s3_bucket)


@pytest.mark.usefixtures("_names")
def test_a_host_that_is_really_called_like_the_bucket_works(swift: Settings) -> None:
    """A bucket `videos` at videos.example.test."""
    with closing(open_s3(swift)) as admin:
        admin.create_bucket(Bucket="videos")
    port = urlsplit(str(swift.s3_endpoint_url)).port
    check_storage(open_storage(change(swift, s3_bucket="videos", s3_endpoint_url=f"http://videos.example.test:{port}")))


def test_the_public_url_is_checked_too(swift: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """No process uses it, only clients do."""
    bucket = swift.s3_bucket
    with pytest.raises(ConfigurationError, match=r"set IVMIX_S3_PUBLIC_ENDPOINT_URL=https://cdn\.example$"):
        open_storage(change(swift, s3_public_endpoint_url=f"https://cdn.example/{bucket}/"))
    open_storage(change(swift, s3_public_endpoint_url=f"https://{bucket}.cdn.example"))
    assert "set IVMIX_S3_PUBLIC_ENDPOINT_URL=https://cdn.example," in caplog.text


@pytest.mark.parametrize(
    ("url", "shorter"),
    [
        ("https://host/clips", "https://host"),
        ("https://host:9000/clips/", "https://host:9000"),
        ("https://host/s3/clips", "https://host/s3"),
        ("https://clips.host:9000", "https://host:9000"),
        ("https://CLIPS.s3.eu-west-1.amazonaws.com/", "https://s3.eu-west-1.amazonaws.com"),
        ("https://clips.host/clips", "https://host"),
        ("https://user:hush@clips.host", "https://host"),
        ("https://host", None),
        ("https://host/s3", None),
        ("https://clipsy.host/clips2", None),
        ("https://host/clips/v1", None),
        ("https://clips", None),
        ("https://clips:9000", None),
        (None, None),
    ],
)
def test_without_bucket(url: str | None, shorter: str | None) -> None:
    assert without_bucket(url, "clips") == shorter
