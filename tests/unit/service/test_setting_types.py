"""Settings that are parts of URLs: what is refused, and what the error suggests."""

from __future__ import annotations

import pytest

from service.errors import ConfigurationError
from service.settings import Settings, load_settings


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert name in raised.value.message
    return raised.value.message


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        ("https://dash.example.com/", "write https://dash.example.com"),
        ("https://dash.example.com/path", "write https://dash.example.com"),
        ("https://Dash.Example.com", "write https://dash.example.com"),
        ("https://dash.example.com:443", "write https://dash.example.com"),
        ("http://dash.example.com:80/", "write http://dash.example.com"),
        ("http://localhost:3000/app?x#y", "write http://localhost:3000"),
        ("https://a?x", "write https://a"),
        ("https://a#x", "write https://a"),
        ("https://*.x", ""),
        ("https://*", ""),
        ("*", ""),
        ("null", ""),
        ("dash.example.com", ""),
        ("ftp://dash.example.com", ""),
        ("https://", ""),
        ("https://a b", ""),
        ("https://a.", ""),
        ("https://m\u00fcnchen.example", ""),
    ],
)
def test_an_origin_must_be_exact(monkeypatch: pytest.MonkeyPatch, origin: str, hint: str) -> None:
    message = refusal(monkeypatch, "IVMIX_CORS_ORIGINS", f"https://fine.example.com,{origin}")
    assert "is not an exact origin" in message
    assert message.endswith(hint)
    assert bool(hint) == ("; write " in message)


@pytest.mark.parametrize("origin", ["https://user:hush@dash.example.com", "https://u:hu/sh@a"])
def test_a_password_is_not_repeated(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    message = refusal(monkeypatch, "IVMIX_CORS_ORIGINS", origin)
    assert "hush" not in message
    assert "hu/sh" not in message


def test_exact_origins_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ("https://dash.example.com", "http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]:8443")
    monkeypatch.setenv("IVMIX_CORS_ORIGINS", ", ".join(origins))
    assert load_settings().cors_origins == origins


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IVMIX_ROOT_PATH", "ivmix"),
        ("IVMIX_ROOT_PATH", "/ivmix/"),
        ("IVMIX_ROOT_PATH", "/"),
        ("IVMIX_ROOT_PATH", "/a//b"),
        ("IVMIX_ROOT_PATH", "/a/../b"),
        ("IVMIX_ROOT_PATH", "/a?b"),
        ("IVMIX_ROOT_PATH", "https://a/b"),
        ("IVMIX_ALLOWED_HOSTS", "https://video.example.com"),
        ("IVMIX_ALLOWED_HOSTS", "video.example.com:8000"),
        ("IVMIX_ALLOWED_HOSTS", "video.example.com/ivmix"),
        ("IVMIX_ALLOWED_HOSTS", "*.example.com"),
        ("IVMIX_TRUSTED_PROXIES", "*"),
        ("IVMIX_TRUSTED_PROXIES", "proxy.internal"),
        ("IVMIX_TRUSTED_PROXIES", "10.0.0.5/8"),
        ("IVMIX_PUBLIC_BASE_URL", "video.example.com"),
        ("IVMIX_PUBLIC_BASE_URL", "https://user:pw@video.example.com"),
        ("IVMIX_PUBLIC_BASE_URL", "https://video.example.com?x=1"),
        ("IVMIX_MODEL_ALIASES", "sora-2"),
        ("IVMIX_MODEL_ALIASES", "sora 2=demo"),
    ],
)
def test_other_forms_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert " is not " in refusal(monkeypatch, name, value)


@pytest.mark.parametrize(
    ("public", "prefix", "expected"),
    [
        (None, "/ivmix", None),
        ("https://v.example", "", "https://v.example"),
        ("https://v.example/", "/ivmix", "https://v.example/ivmix"),
        ("https://v.example/ivmix", "/ivmix", "https://v.example/ivmix"),
        ("https://v.example/a/", "", "https://v.example/a"),
    ],
)
def test_the_base_of_urls_contains_the_prefix_once(public: str | None, prefix: str, expected: str | None) -> None:
    assert Settings(public_base_url=public, root_path=prefix).client_base_url == expected
