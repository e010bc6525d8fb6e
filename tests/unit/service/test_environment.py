from __future__ import annotations

import pytest

from service.environment import refuse_unknown_variables
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
from tests.containers import ROOT

SERVICE_LINKS = {  # of the Services ivmix, ivmix-api, ivmix-metrics and ivmix-worker-metrics
    "IVMIX_SERVICE_HOST": "10.0.0.1",
    "IVMIX_SERVICE_PORT": "8000",
    "IVMIX_SERVICE_PORT_HTTP": "8000",
    "IVMIX_PORT": "tcp://10.0.0.1:8000",
    "IVMIX_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "IVMIX_PORT_8000_TCP_PROTO": "tcp",
    "IVMIX_PORT_8000_TCP_PORT": "8000",
    "IVMIX_PORT_8000_TCP_ADDR": "10.0.0.1",
    "IVMIX_API_SERVICE_HOST": "10.0.0.1",
    "IVMIX_API_PORT": "tcp://10.0.0.1:8000",
    "IVMIX_API_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "IVMIX_METRICS_PORT": "tcp://[fd00::1]:9000",
    "IVMIX_WORKER_METRICS_PORT": "udp://10.0.0.1:9000",
}


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("IVMIX_REDIS_UR", "IVMIX_REDIS_URL"),
        ("IVMIX_REDISURL", "IVMIX_REDIS_URL"),
        ("IVMIX_S3_BUKET", "IVMIX_S3_BUCKET"),
        ("ivmix_prot", "IVMIX_PORT"),
        ("IVMIX_WORKER_PORT", "IVMIX_WORKER_METRICS_PORT"),
        ("IVMIX_APIKEY", "IVMIX_API_KEY"),
        ("IVMIX_", "IVMIX_URL"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    misspelt: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(misspelt, "secret")
    with pytest.raises(ConfigurationError, match=f"{misspelt}; did you mean {nearest}\\?") as raised:
        load_settings()
    assert "secret" not in raised.value.message


def test_all_misspelt_variables_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"IVMIX_A\b.*IVMIX_B\b"):
        refuse_unknown_variables({"IVMIX_A": "", "IVMIX_B": ""}, ["port"])


def test_addresses_of_kubernetes_services_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.port, settings.metrics_port, settings.worker_metrics_port) == (8000, None, None)


def test_variables_of_the_deployment_files_are_known() -> None:
    lines = (ROOT / "docker" / ".env.example").read_text().splitlines()
    names = [line.strip("# ").split("=")[0] for line in lines if "=" in line and "IVMIX_" in line.split("=")[0]]
    assert names
    refuse_unknown_variables(dict.fromkeys(names, "x"), Settings.model_fields)


def test_other_programs_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIXER_PORT", "x")
    load_settings()
