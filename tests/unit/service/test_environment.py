from __future__ import annotations

import re

import pytest

from service.environment import refuse_unknown_variables
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
from tests.containers import OVERLAYS, ROOT, Document, rendered

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


@pytest.mark.sample(2)
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("prefix", ["", "ivmix-", "ivmix-worker-"])
def test_links_of_the_services_that_we_ship_do_not_matter(
    overlay: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every prefix that kustomize's namePrefix or a chart may add."""
    services = [document for document in rendered(overlay) if document["kind"] == "Service"]
    links = {name: value for service in services for name, value in service_links(service, prefix).items()}
    assert len(links) > 10
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == 8000


def service_links(service: Document, prefix: str) -> dict[str, str]:
    """The variables that Kubernetes and Docker set for a Service."""
    name = re.sub(r"\W", "_", f"{prefix}{service['metadata']['name']}").upper()
    found = {f"{name}_SERVICE_HOST": "10.0.0.1"}
    for port in service["spec"]["ports"]:
        number, url = str(port["port"]), f"tcp://10.0.0.1:{port['port']}"
        found |= {f"{name}_SERVICE_PORT": number, f"{name}_SERVICE_PORT_{port['name'].upper()}": number}
        found |= {f"{name}_PORT": url, f"{name}_PORT_{number}_TCP": url, f"{name}_PORT_{number}_TCP_PROTO": "tcp"}
        found |= {f"{name}_PORT_{number}_TCP_PORT": number, f"{name}_PORT_{number}_TCP_ADDR": "10.0.0.1"}
    return found


def test_variables_of_docker_deploy_and_docs_are_known() -> None:
    """In comments and texts too: that is where operators copy them from."""
    files = [path for folder in ("docker", "deploy", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text() for path in (*files, ROOT / "README.md") if path.suffix not in (".png", ".webp")}
    for path, text in texts.items():
        named = set(re.findall(r"\bIVMIX_[A-Z0-9_]*[A-Z0-9]\b(?!\*)", text))
        try:
            refuse_unknown_variables(dict.fromkeys(named, "x"), Settings.model_fields)
        except ConfigurationError as e:
            pytest.fail(f"{path}: {e.message}")
    assert sum("IVMIX_S3_BUCKET" in text for text in texts.values()) >= 3


def test_other_programs_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVMIXER_PORT", "x")
    load_settings()
