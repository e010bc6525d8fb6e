from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import ConfigurationError
from service.settings import MODELS_FILE, Settings, load_settings
from service.settings_reference import settings_reference
from tests.containers import ROOT


def test_defaults_are_file_storage_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_all_missing_s3_settings_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_STORAGE", "s3")
    monkeypatch.setenv("IVMIX_S3_ACCESS_KEY_ID", "key")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert "IVMIX_S3_BUCKET" in raised.value.message
    assert "IVMIX_S3_SECRET_ACCESS_KEY" in raised.value.message


def test_s3_keys_are_optional_because_boto3_finds_credentials() -> None:
    assert Settings(storage="s3", s3_bucket="videos").s3_access_key_id is None


def test_an_error_about_one_setting_does_not_print_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_S3_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("IVMIX_REDIS_URL", "redis://:hush@localhost")
    monkeypatch.setenv("IVMIX_PORT", "hush")
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert "IVMIX_PORT" in raised.value.message
    assert "hush" not in raised.value.message + str(raised.value.__cause__)


def test_secrets_are_not_in_the_repr() -> None:
    assert "hush" not in repr(Settings(redis_url="redis://:hush@localhost", s3_secret_access_key="hush"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_public_host_needs_authentication_or_allow_open(host: str) -> None:
    with pytest.raises(ConfigurationError, match="IVMIX_ALLOW_OPEN"):
        Settings(host=host, auth="off").require_auth_on_public_host()
    Settings(host=host).require_auth_on_public_host()
    Settings(host=host, auth="off", allow_open=True).require_auth_on_public_host()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_host_needs_neither(host: str) -> None:
    Settings(host=host, auth="off").require_auth_on_public_host()


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_WEBHOOK_ALLOW", "10.0.0.0/8, hooks.internal,.svc.cluster.local,fd12::/16")
    monkeypatch.setenv("IVMIX_WEBHOOK_RETRY_DELAYS_S", "0.5,60")
    settings = load_settings()
    assert settings.webhook_allow == ("10.0.0.0/8", "hooks.internal", ".svc.cluster.local", "fd12::/16")
    assert settings.webhook_retry_delays_s == (0.5, 60.0)


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "https://hooks.internal", "a b", "*.internal", "10.0.0.0/33", "a..b"])
def test_invalid_webhook_allow_entry_is_rejected(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("IVMIX_WEBHOOK_ALLOW", entry)
    with pytest.raises(ConfigurationError, match=r"IVMIX_WEBHOOK_ALLOW: .*is not a network"):
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
def test_webhook_numbers_have_bounds(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IVMIX_WEBHOOK_{name}", value)
    with pytest.raises(ConfigurationError, match=f"IVMIX_WEBHOOK_{name}"):
        load_settings()


def test_a_lease_must_outlast_two_failed_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIX_LEASE_S", "20")
    with pytest.raises(ConfigurationError, match=r"IVMIX_BEAT_S=10 is more than a third of IVMIX_LEASE_S=20"):
        load_settings()


@pytest.mark.parametrize("origin", ["https://dash.example.com/", "dash.example.com", "*"])
def test_cors_origins_are_written_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("IVMIX_CORS_ORIGINS", f"https://fine.example.com,{origin}")
    with pytest.raises(ConfigurationError, match=r"IVMIX_CORS_ORIGINS: .*is not an exact origin"):
        load_settings()


def test_the_documentation_lists_every_setting_as_declared() -> None:
    """`python -m service.settings_reference > docs/settings.md` renews it."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_reference()


def test_every_setting_is_explained() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    names = [name for name, field in Settings.model_fields.items() if "Path" in str(field.annotation)]
    redis = {"redis_ca_file", "redis_cert_file", "redis_key_file"}
    others = {"data_dir", "models_file", "weights_dir", "s3_ca_file", "scratch_dir", "upload_dir", "pulse_file"}
    assert redis | others == set(names)
    monkeypatch.setenv("IVMIX_REDIS_URL", "rediss://host")
    for name in names:
        monkeypatch.setenv(f"IVMIX_{name.upper()}", "~/file")
    settings = load_settings()
    assert {getattr(settings, name) for name in names} == {tmp_path / "file"}


def test_missing_ca_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"s3_ca_file[\s\S]*is not a file"):
        Settings(s3_ca_file=tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "99999", "IVMIX_PORT=99999 must be at most 65535"),
        ("PORT", "http", "IVMIX_PORT must be a whole number"),
        ("MAX_WAITING", "-3", "IVMIX_MAX_WAITING=-3 must be at least 1"),
        ("LEASE_S", "nan", "IVMIX_LEASE_S=nan must be greater than 0"),
        ("STORAGE", "nfs", "IVMIX_STORAGE must be one of 'file' or 's3'"),
        ("STORAGE", "s3", "IVMIX_STORAGE=s3 needs IVMIX_S3_BUCKET; set what is missing, or use IVMIX_STORAGE=file"),
        ("MIN_FREE_MB", "a lot", "IVMIX_MIN_FREE_MB must be a whole number"),
    ],
)
def test_wrong_settings_are_named_with_what_is_possible(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"IVMIX_{name}", value)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert raised.value.message == message


def test_an_empty_variable_is_unset_but_an_empty_list_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty path would be the current folder, whose files `ivmix up` would make private."""
    lists = {name for name, field in Settings.model_fields.items() if isinstance(field.default, tuple)}
    assert {"trusted_proxies", "models", "webhook_retry_delays_s"} <= lists
    unset = load_settings()
    for name in Settings.model_fields.keys() - lists:
        monkeypatch.setenv(f"IVMIX_{name.upper()}", "")
    assert load_settings() == unset
    monkeypatch.setenv("IVMIX_TRUSTED_PROXIES", "")
    assert load_settings().trusted_proxies == ()
