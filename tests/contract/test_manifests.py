"""deploy/: the overlays as kustomize renders them, against Kubernetes' own schemas and the code that runs."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate import ValidationError
from redis import Redis
from rq import Queue
from rq.registry import StartedJobRegistry

from service.jobs.rq_queues import generate_queue_name, queue_key
from tests.container_checks import HEARTBEAT_PROBE, READY_PROBE, problems
from tests.containers import (
    DEPLOY,
    IMAGES,
    OVERLAYS,
    Document,
    containers_of,
    env_file,
    image_of,
    manifest_containers,
    pod_specs,
    rendered,
)
from tests.custom_resources import FIELDS

KUBERNETES = "1.37"

both = pytest.mark.parametrize("overlay", OVERLAYS)


def one(overlay: str, kind: str, name: str) -> Document:
    (found,) = [d for d in rendered(overlay) if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def validate(document: Document) -> None:
    """Raises ValidationError; pydantic's where Kubernetes has no schema."""
    if document["kind"] in FIELDS:
        FIELDS[document["kind"]].model_validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_document_is_valid() -> None:
    # the overlays have most of them in common, and the schemas are slow
    for document in {repr(document): document for overlay in OVERLAYS for document in rendered(overlay)}.values():
        validate(document)
        assert document["metadata"].get("namespace", "ivmix") == "ivmix"


def test_wrong_manifest_is_refused() -> None:
    api = one("production", "Deployment", "api")
    for wrong in ({"replicas": "one"}, {"replica": 1}, {"selector": "api"}):
        with pytest.raises(ValidationError):
            validate({**api, "spec": {**api["spec"], **wrong}})


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("ScaledObject", "worker-animatediff", {"maxReplicas": 8}),
        ("TriggerAuthentication", "valkey", {"secretTargetRefs": []}),
        ("ServiceMonitor", "api", {"endpoint": []}),
        ("PrometheusRule", "ivmix", {"groups": [{"name": "x", "rules": [{"alert": "X", "expression": "up"}]}]}),
    ],
)
def test_wrong_custom_resource_is_refused(kind: str, name: str, wrong: dict[str, Any]) -> None:
    document = one("production", kind, name)
    with pytest.raises(ValueError, match="validation error"):
        validate({**document, "spec": {**document["spec"], **wrong}})


@both
def test_containers_agree_with_the_code(overlay: str) -> None:
    found = list(manifest_containers(rendered(overlay)))
    assert [text for container in found for text in problems(container)] == []
    assert {c.arguments[0] for c in found} >= {"api", "webhooks", "maintenance", "worker"}


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("'IVMIX_S3_BUCKET'", "'IVMIX_S3_BUKET'", "IVMIX_S3_BUKET"),
        ("'IVMIX_WORKER_METRICS_PORT'", "'IVMIX_WORKER_PORT'", "IVMIX_WORKER_PORT"),
        ("['maintenance']", "['maintain']", "`ivmix maintain` is not a command"),
        ("['worker', 'animatediff']", "['worker', 'animateddiff']", "there is no model animateddiff"),
        ("['worker', 'animatediff']", "['worker', 'modelscope']", "the API does not offer modelscope"),
        ("'/readyz'", "'/ready'", "a probe requests /ready on port http"),
        ("'containerPort': 9090", "'containerPort': 9091", "nothing listens on port metrics, 9091"),
        ("-mmin -2", "-mmin -20000", "a probe runs"),
        ("{'mountPath': '/scratch'", "{'mountPath': '/scratches'", "/scratch is not writable"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_seen(right: str, wrong: str, problem: str) -> None:
    text = repr(rendered("production"))
    assert right in text
    changed = eval(text.replace(right, wrong))  # our own documents
    assert problem in "\n".join(text for c in manifest_containers(changed) for text in problems(c))


@both
def test_pods_are_restricted(overlay: str) -> None:
    """The restricted pod security standard, a read-only root, and nothing of the cluster's API."""
    for workload, pod in pod_specs(rendered(overlay)):
        name, security = workload["metadata"]["name"], pod["securityContext"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert security["runAsNonRoot"] is True, name
        assert min(security["runAsUser"], security["runAsGroup"]) > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert all("hostPath" not in volume for volume in pod["volumes"]), name
        for container in containers_of(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert "memory" in container["resources"]["limits"], name
            claims = workload["spec"].get("volumeClaimTemplates", [])
            volumes = {v["name"] for v in pod["volumes"]} | {claim["metadata"]["name"] for claim in claims}
            assert {m["name"] for m in container["volumeMounts"]} <= volumes, name
            assert re.search(r":(?!latest$)[\w.-]+$", container["image"]), name


@both
def test_secrets_are_referred_to_and_never_written(overlay: str) -> None:
    """`_secret` in tests/containers.py refuses names and keys that deploy/secret.env.example does not have."""
    assert all(document["kind"] != "Secret" for document in rendered(overlay))
    for document in rendered(overlay):
        if document["kind"] == "ConfigMap":
            assert not {name for name in document["data"] if re.search("SECRET|PASSWORD|KEY|REDIS_URL", name)}
    references = re.findall(r"'secretKeyRef': (\{[^}]*\})", repr(rendered(overlay)))
    keys = env_file(DEPLOY / "secret.env.example").keys()
    assert all(eval(reference)["key"] in keys for reference in references)
    assert {reference["name"] for reference in map(eval, references)} <= {"ivmix"}


@both
def test_services_autoscalers_and_policies_find_what_they_name(overlay: str) -> None:
    found = rendered(overlay)
    pods = [w["spec"]["template"]["metadata"]["labels"] for w, _ in pod_specs(found)]
    names = {(d["kind"], d["metadata"]["name"]) for d in found}
    ports = {p["name"] for _, pod in pod_specs(found) for c in containers_of(pod) for p in c.get("ports", [])}
    for document in found:
        spec, name = document.get("spec", {}), document["metadata"]["name"]
        match document["kind"]:
            case "Service":
                assert any(spec["selector"].items() <= labels.items() for labels in pods), name
                assert {port["targetPort"] for port in spec["ports"]} <= ports, name
            case "Deployment" | "StatefulSet" | "PodDisruptionBudget":
                assert any(spec["selector"]["matchLabels"].items() <= labels.items() for labels in pods), name
            case "HorizontalPodAutoscaler":
                assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) in names, name
            case "ScaledObject":
                assert ("Deployment", spec["scaleTargetRef"]["name"]) in names, name
            case "Ingress":
                for rule in spec["rules"]:
                    for path in rule["http"]["paths"]:
                        assert ("Service", path["backend"]["service"]["name"]) in names, name
            case "NetworkPolicy":
                assert _selects_a_pod(spec["podSelector"], pods), name
            case "ServiceMonitor":
                wanted = spec["selector"]["matchLabels"].items()
                services = [d for d in found if d["kind"] == "Service" and wanted <= d["metadata"]["labels"].items()]
                assert len(services) == 1, name
                scraped = {port["name"] for port in services[0]["spec"]["ports"]}
                assert {endpoint["port"] for endpoint in spec["endpoints"]} <= scraped, name
            case _:
                pass
    claims = {name for kind, name in names if kind == "PersistentVolumeClaim"}
    for _, pod in pod_specs(found):
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert used <= claims


def _selects_a_pod(selector: Document, pods: list[dict[str, str]]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if not all(any(labels.get(expression["key"]) == v for labels in pods) for v in expression["values"]):
            return False
    return any(selector.get("matchLabels", {}).items() <= labels.items() for labels in pods)


@both
def test_nothing_is_let_through_that_is_not_named(overlay: str) -> None:
    deny = one(overlay, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@both
def test_worker_is_given_one_gpu_time_to_drain_and_no_twin(overlay: str) -> None:
    workers = [(w, pod) for w, pod in pod_specs(rendered(overlay)) if w["metadata"]["name"].startswith("worker-")]
    assert workers
    for workload, pod in workers:
        assert pod["terminationGracePeriodSeconds"] == 120
        assert workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
        (container,) = pod["containers"]
        # Only the pulse decides about a restart: a worker may load for 15 minutes, or wait for files to be repaired.
        programs = [container[probe]["exec"]["command"][-1] for probe in ("startupProbe", "livenessProbe")]
        assert programs == [HEARTBEAT_PROBE] * 2
        assert container["readinessProbe"]["exec"]["command"][-1] == READY_PROBE
        assert workload["metadata"]["name"] == f"worker-{container['args'][1]}"
        if overlay != "demo":
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_scaling_counts_the_lists_that_the_workers_use() -> None:
    spec = one("production", "ScaledObject", "worker-animatediff")["spec"]
    queue = Queue(generate_queue_name("animatediff"), connection=Redis(), serializer="json")  # does not connect
    lists = {trigger["name"]: trigger["metadata"]["listName"] for trigger in spec["triggers"]}
    assert lists == {"queued": queue_key("animatediff"), "running": StartedJobRegistry(queue=queue).key}
    assert spec["advanced"]["scalingModifiers"]["formula"] == " + ".join(lists)
    for trigger in spec["triggers"]:
        host, port = trigger["metadata"]["address"].split(":")
        service = one("production", "Service", host.removesuffix(".ivmix.svc"))
        assert int(port) in {p["port"] for p in service["spec"]["ports"]}
        one("production", "TriggerAuthentication", trigger["authenticationRef"]["name"])


def test_images_of_all_overlays_are_ours_or_pinned() -> None:
    for overlay in OVERLAYS:
        images = {container["image"] for _, pod in pod_specs(rendered(overlay)) for container in containers_of(pod)}
        foreign = {image for image in images if image_of({"image": image}) not in IMAGES}
        assert foreign == {"valkey/valkey:9.1.2"}  # the version that the tests' wheel has
