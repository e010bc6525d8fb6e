"""Network policies of deploy/: where each process may connect to, by evaluating the policies as rendered."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from service.webhooks.private_addresses import ALWAYS_REFUSED, NOT_PUBLIC_V4, NOT_PUBLIC_V6, PUBLIC_V6, refusal_reason
from tests.containers import OVERLAYS, Document, manifest_containers, pod_specs, rendered

PUBLIC = {"8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"}
ANY_PORT = 0
REACHES_THE_INTERNET = [
    ("demo", "webhooks", ANY_PORT),
    ("production", "webhooks", ANY_PORT),
    ("production", "api", 443),  # S3
    ("production", "maintenance", 443),
    ("production", "worker", 443),
    ("production", "weights", 443),  # the model hub
    ("single-gpu", "webhooks", ANY_PORT),
    ("single-gpu", "weights", 443),
]


def _edges() -> Iterator[str]:
    """Addresses on both sides of every border."""
    for network in (*ALWAYS_REFUSED, *NOT_PUBLIC_V4, *NOT_PUBLIC_V6, PUBLIC_V6):
        for address in (network[0], network[-1]):
            yield from {str(address), *(str(address + step) for step in (-1, 1) if _fits(address, step))}
    yield from ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "fd00::1", "::1")


def _fits(address: ipaddress.IPv4Address | ipaddress.IPv6Address, step: int) -> bool:
    return 0 <= int(address) + step < 2**address.max_prefixlen


def selects(policy: Document, component: str) -> bool:
    selector = policy["spec"]["podSelector"]
    wanted = selector.get("matchLabels", {}).get("app.kubernetes.io/component", component)
    listed = [e["values"] for e in selector.get("matchExpressions", []) if e["key"] == "app.kubernetes.io/component"]
    return wanted == component and all(component in values for values in listed)


def rules(overlay: str, component: str, direction: str) -> Iterator[Document]:
    for document in rendered(overlay):
        if document["kind"] == "NetworkPolicy" and selects(document, component):
            yield from document["spec"].get(direction, [])


def reached(overlay: str, component: str) -> dict[str, set[int | str]]:
    """Edge addresses that policies open to this component, with their ports."""
    found: dict[str, set[int | str]] = {}
    for rule in rules(overlay, component, "egress"):
        ports = {port.get("port", ANY_PORT) for port in rule.get("ports", [{}])}
        for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]):
            for address in _edges():
                if "ipBlock" in peer and _is_in(address, peer["ipBlock"]):
                    found.setdefault(address, set()).update(ports)
    return found


def _is_in(address: str, block: Document) -> bool:
    parsed = ipaddress.ip_address(address)
    excepted = any(parsed in ipaddress.ip_network(network) for network in block.get("except", []))
    return parsed in ipaddress.ip_network(block["cidr"]) and not excepted


def components(overlay: str) -> set[str]:
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload, _ in pod_specs(rendered(overlay))]
    return {label["app.kubernetes.io/component"] for label in labels}


@pytest.mark.parametrize(("overlay", "component", "port"), REACHES_THE_INTERNET)
def test_who_reaches_the_internet_reaches_public_addresses_only(overlay: str, component: str, port: int) -> None:
    opened = reached(overlay, component)
    assert {address: refusal_reason(address) for address in opened if refusal_reason(address)} == {}
    assert opened.keys() >= PUBLIC
    assert set().union(*opened.values()) == {port}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_others_reach_no_address_outside(overlay: str) -> None:
    """With file storage the API needs none: the dispatcher sends test events too."""
    others = components(overlay) - {name for where, name, _ in REACHES_THE_INTERNET if where == overlay}
    assert others >= ({"valkey"} if overlay == "production" else {"api", "maintenance", "worker", "valkey"})
    assert {name: set(reached(overlay, name)) for name in others} == {name: set() for name in others}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_denied_by_default(overlay: str) -> None:
    specs = [d["spec"] for d in rendered(overlay) if d["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in specs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_are_for_the_monitoring_namespace_only(overlay: str) -> None:
    for container in manifest_containers(rendered(overlay)):
        if "metrics" in container.ports:
            component = container.arguments[0]
            open_to = [rule.get("from") for rule in rules(overlay, component, "ingress") if _opens(rule, "metrics")]
            assert open_to == [[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]]
            assert container.ports["metrics"] != container.ports.get("http")


def _opens(rule: Document, port: str) -> bool:
    return any(p.get("port", port) == port for p in rule.get("ports", [{}]))
