from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import MODELS_FILE, Settings, load_settings


def test_without_any_variable_the_demo_runs_on_files_and_for_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    settings = load_settings()
    assert (settings.storage, settings.host, settings.models, settings.models_file) == (
        "file",
        "127.0.0.1",
        (),
        MODELS_FILE,
    )
    assert settings.data_dir == Path("/somewhere/ivmix")
    assert settings.weights_dir == Path("/somewhere/ivmix/models")


def test_variables_are_read_with_their_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_MODELS", "demo, animatediff")
    monkeypatch.setenv("IVMIX_PORT", "9000")
    settings = load_settings()
    assert settings.models == ("demo", "animatediff")
    assert settings.port == 9000


def test_everything_that_s3_lacks_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_STORAGE", "s3")
    monkeypatch.setenv("IVMIX_S3_ACCESS_KEY_ID", "key")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert "IVMIX_S3_BUCKET" in raised.value.message
    assert "IVMIX_S3_SECRET_ACCESS_KEY" in raised.value.message


def test_s3_without_keys_is_fine_because_boto3_looks_for_them_itself() -> None:
    assert Settings(storage="s3", s3_bucket="videos").s3_access_key_id is None


def test_a_complaint_about_one_setting_does_not_print_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_S3_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("IVMIX_REDIS_URL", "redis://:hush@localhost")
    monkeypatch.setenv("IVMIX_PORT", "hush")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert "IVMIX_PORT" in raised.value.message
    assert "hush" not in raised.value.message + str(raised.value.__cause__)


def test_secrets_are_not_in_the_text_of_the_settings() -> None:
    assert "hush" not in repr(Settings(redis_url="redis://:hush@localhost", s3_secret_access_key="hush"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_a_host_that_others_reach_needs_authentication_or_a_promise(host: str) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_ALLOW_OPEN"):
        Settings(host=host, auth="off").require_auth_on_public_host()
    Settings(host=host).require_auth_on_public_host()
    Settings(host=host, auth="off", allow_open=True).require_auth_on_public_host()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_neither(host: str) -> None:
    Settings(host=host, auth="off").require_auth_on_public_host()


def test_lists_about_webhooks_are_joined_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_WEBHOOK_ALLOW", "10.0.0.0/8, hooks.internal,.svc.cluster.local,fd12::/16")
    monkeypatch.setenv("IVMIX_WEBHOOK_RETRY_DELAYS_S", "0.5,60")
    settings = load_settings()
    assert settings.webhook_allow == ("10.0.0.0/8", "hooks.internal", ".svc.cluster.local", "fd12::/16")
    assert settings.webhook_retry_delays_s == (0.5, 60.0)


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "https://hooks.internal", "a b", "*.internal", "10.0.0.0/33", "a..b"])
def test_an_allow_list_that_means_nothing_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("IVMIX_WEBHOOK_ALLOW", entry)
    with pytest.raises(ConfigurationError, match=r"IVMIX_WEBHOOK_ALLOW: .*neither a network"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETRY_DELAYS_S", "-1"),
        ("RETRY_DELAYS_S", "soon"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "60"),
        ("CONCURRENCY", "0"),
    ],
)
def test_numbers_about_webhooks_have_bounds(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IVMIX_WEBHOOK_{name}", value)
    with pytest.raises(ConfigurationError, match=f"IVMIX_WEBHOOK_{name}"):
        load_settings()
