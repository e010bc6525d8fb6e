"""The fields of KEDA's and the Prometheus operator's resources that deploy/ uses. Kubernetes has no schema for them, and
an operator ignores a field whose name is wrong. Sources: keda.sh, "ScaledObject specification", "Redis Lists";
prometheus-operator.dev, "API reference"; both as of late 2025."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Duration = Annotated[str, StringConstraints(pattern=r"^\d+(s|m|h|d)$")]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str
    namespace: str
    labels: Labels = {}


class Name(Strict):
    name: str


class Trigger(Strict):
    type: Literal["redis"]
    name: str
    metadata: RedisList
    authenticationRef: Name


class RedisList(Strict):
    """All text."""

    address: str
    listName: str
    listLength: str = "5"
    activationListLength: str = "0"
    databaseIndex: str = "0"
    enableTLS: Literal["true", "false"] = "false"


class ScalingModifiers(Strict):
    formula: str
    target: str
    activationTarget: str = "0"
    metricType: Literal["AverageValue", "Value"] = "AverageValue"


class Policy(Strict):
    type: Literal["Pods", "Percent"]
    value: int
    periodSeconds: int = Field(ge=1, le=1800)


class Rules(Strict):
    stabilizationWindowSeconds: int | None = Field(default=None, ge=0, le=3600)
    policies: list[Policy] = []


class Behavior(Strict):
    scaleUp: Rules | None = None
    scaleDown: Rules | None = None


class HpaConfig(Strict):
    behavior: Behavior


class Advanced(Strict):
    horizontalPodAutoscalerConfig: HpaConfig | None = None
    scalingModifiers: ScalingModifiers


class ScaledObjectSpec(Strict):
    scaleTargetRef: Name
    pollingInterval: int
    cooldownPeriod: int
    minReplicaCount: int = Field(ge=0)
    maxReplicaCount: int = Field(ge=1)
    advanced: Advanced
    triggers: list[Trigger]


class ScaledObject(Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class SecretTarget(Strict):
    parameter: Literal["username", "password"]
    name: str
    key: str


class TriggerAuthenticationSpec(Strict):
    secretTargetRef: list[SecretTarget]


class TriggerAuthentication(Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: Metadata
    spec: TriggerAuthenticationSpec


class Selector(Strict):
    matchLabels: Labels


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    interval: Duration


class ServiceMonitorSpec(Strict):
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class ServiceMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class Alert(Strict):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    alert: str
    expr: str
    for_: Duration = Field(default="0s", alias="for")
    labels: Labels
    annotations: Labels


class Group(Strict):
    name: str
    rules: list[Alert]


class PrometheusRuleSpec(Strict):
    groups: list[Group]


class PrometheusRule(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


FIELDS: dict[str, Any] = {
    model.__name__: model for model in (ScaledObject, TriggerAuthentication, ServiceMonitor, PrometheusRule)
}
