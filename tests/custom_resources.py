"""Schemas of the KEDA and Prometheus operator resources that deploy/ uses.

Kubernetes has no schema for them, and an operator ignores a misspelled field. Sources: keda.sh, "ScaledObject
specification" and "Redis Lists"; prometheus-operator.dev, "API reference"; both as of late 2025.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Duration = Annotated[str, StringConstraints(pattern=r"^\d+(s|m|h|d)$")]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


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
    authentication_ref: Name


class RedisList(Strict):
    """KEDA reads every value as text."""

    address: str
    list_name: str
    list_length: str = "5"
    activation_list_length: str = "0"
    database_index: str = "0"


class ScalingModifiers(Strict):
    formula: str
    target: str
    activation_target: str = "0"
    metric_type: Literal["AverageValue", "Value"] = "AverageValue"


class Policy(Strict):
    type: Literal["Pods", "Percent"]
    value: int
    period_seconds: int = Field(ge=1, le=1800)


class Rules(Strict):
    stabilization_window_seconds: int | None = Field(default=None, ge=0, le=3600)
    policies: list[Policy] = []


class Behavior(Strict):
    scale_up: Rules | None = None
    scale_down: Rules | None = None


class HpaConfig(Strict):
    behavior: Behavior


class Advanced(Strict):
    horizontal_pod_autoscaler_config: HpaConfig | None = None
    scaling_modifiers: ScalingModifiers


class ScaledObjectSpec(Strict):
    scale_target_ref: Name
    polling_interval: int
    cooldown_period: int
    min_replica_count: int = Field(ge=0)
    max_replica_count: int = Field(ge=1)
    advanced: Advanced
    triggers: list[Trigger]


class ScaledObject(Strict):
    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class SecretTarget(Strict):
    parameter: Literal["username", "password"]
    name: str
    key: str


class TriggerAuthenticationSpec(Strict):
    secret_target_ref: list[SecretTarget]


class TriggerAuthentication(Strict):
    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: Metadata
    spec: TriggerAuthenticationSpec


class Selector(Strict):
    match_labels: Labels


class Endpoint(Strict):
    port: str
    path: str = "/metrics"
    interval: Duration


class ServiceMonitorSpec(Strict):
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class ServiceMonitor(Strict):
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class Alert(Strict):
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
    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


FIELDS: dict[str, Any] = {
    model.__name__: model for model in (ScaledObject, TriggerAuthentication, ServiceMonitor, PrometheusRule)
}
