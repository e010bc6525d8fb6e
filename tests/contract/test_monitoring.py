"""deploy/monitoring: every figure that an alert or a panel reads is one that some process shows, with those labels;
every alert has its page in the runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from service.api.metrics import Metrics
from service.jobs.model import Phase
from service.storage.metrics import StorageCall
from service.webhook_dispatcher.metrics import DispatcherMetrics
from service.webhooks.retry_policy import State
from service.webhooks.sender import Outcome
from service.wiring import Services
from tests.containers import DEPLOY
from tests.factories import make_output
from worker.messages import Done, Progress
from worker.parent.metrics import WorkerMetrics

RULES = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yaml").read_text())["spec"]["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
RUNBOOK = (DEPLOY / "runbook.md").read_text()
# Prometheus' own, kubelet's, kube-state-metrics'.
FOREIGN = {
    "up": {"namespace", "job"},
    "kube_deployment_status_replicas_available": {"namespace", "deployment"},
    "kube_pod_container_status_restarts_total": {"namespace", "container"},
    "kubelet_volume_stats_available_bytes": {"namespace", "persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"namespace", "persistentvolumeclaim"},
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}

Shown = dict[str, set[str]]  # labels by figure


@pytest.fixture
def shown(services: Services) -> Shown:
    """What API and worker show after they did something."""
    api = Metrics(services)
    api.record("GET", "/v1/videos/{video_id}", 200, 0.001)
    worker = WorkerMetrics()
    worker.storage.observe(StorageCall("put", 1.0, is_ok=False))
    worker.begin("execution")
    worker.progress("demo", Progress(Phase.SAMPLING, 1, 2))
    worker.completed("demo", Done(make_output(), {Phase.SAMPLING: 1.0}, 1.0))
    worker.end("demo", "execution", "completed")
    services.store.record_duration("demo", 1.0)
    dispatcher = DispatcherMetrics()
    dispatcher.attempt_made(Outcome(200, None, 0.1))
    dispatcher.delivery_ended(State.DELIVERED)
    registries = (api.registry, worker.registry, dispatcher.registry)
    return FOREIGN | {name: labels for registry in registries for name, labels in _figures(registry)}


def _figures(registry: CollectorRegistry) -> Iterator[tuple[str, set[str]]]:
    for metric in registry.collect():
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        for suffix in SUFFIXES.get(metric.type, ("",)):
            yield metric.name + suffix, labels | ({"le"} if suffix == "_bucket" else set()) | _unsampled(metric)


def _unsampled(metric: Metric) -> set[str]:
    """A wait is not known without workers."""
    return {"model"} if metric.name == "ivmix_queue_estimated_wait_seconds" and not metric.samples else set()


def problems(expression: str, shown: Shown) -> list[str]:
    """Raises ValueError for what is no PromQL."""
    found: list[str] = []
    seen: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            name = str(node.name)
            if name not in shown:
                found.append(f"no process exports {name}")
            else:
                seen.update(shown[name])
                found.extend(
                    f"{name} has no label {matcher.name}"
                    for matcher in node.matchers.matchers
                    if matcher.name not in shown[name]
                )

    promql_parser.walk(promql_parser.parse(expression), visit)
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        named = {label.strip() for label in labels.split(",")}
        found += [f"nothing there has the label {label}" for label in sorted(named - seen)]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_reads_what_is_shown(rule: dict[str, Any], shown: Shown) -> None:
    assert problems(rule["expr"], shown) == []
    assert rule["labels"]["severity"] in ("page", "ticket")
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert all(re.search(rf"by \([^)]*\b{name}\b", rule["expr"]) for name in named)


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_panel_reads_what_is_shown(panel: dict[str, Any], shown: Shown) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert problems(target["expr"], shown) == []


def test_wrong_figures_and_labels_are_seen(shown: Shown) -> None:
    assert problems("max(ivmix_queue_length) > 0", shown) == ["no process exports ivmix_queue_length"]
    assert problems('ivmix_workers{status="idle"}', shown) == ["ivmix_workers has no label status"]
    assert problems("sum by (queue) (ivmix_workers)", shown) == ["nothing there has the label queue"]
    with pytest.raises(ValueError, match="invalid promql"):
        problems("sum by model (ivmix_workers)", shown)


def test_queue_is_said_to_be_nearly_full_before_it_is() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "IvmixQueueNearlyFull"]
    limit = int(yaml.safe_load((DEPLOY / "overlays/production/settings.yaml").read_text())["data"]["IVMIX_MAX_WAITING"])
    assert float(rule["expr"].rpartition("> ")[2]) == 0.8 * limit


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    section = RUNBOOK.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    pages = dict(re.findall(r"^### (\w+)\n+(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))
    assert list(pages) == [rule["alert"] for rule in RULES]
    for name, text in pages.items():
        assert all(f"**{part}.**" in text for part in ("Means", "Look", "Do")), name
