"""Rules for the metrics of alerts and dashboards: an alert on a metric that does not exist never fires.

Ray's metrics are those of its dashboards in deploy/monitoring; gemel-ray's are those that the endpoint and
the job register.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from gemel_ray.deploying.manifests import Found, Json, Manifests

# Sources: Prometheus, KubeRay's operator (controllers/ray/metrics), the kubelet, kube-state-metrics, Ray
# Serve (application_state.py), Qdrant (/metrics).
_OTHERS = {
    "up",
    "kube_pod_container_status_terminated",
    "kube_pod_status_phase",
    "ray_serve_application_status",
    "kuberay_service_condition_ready",
    "kuberay_service_condition_upgrade_in_progress",
    "kuberay_job_deployment_status",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "collections_total",
    "collections_vector_total",
    "rest_responses_total",
    "rest_responses_fail_total",
    "rest_responses_avg_duration_seconds",
}
_WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
}
_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")


def known(manifests: Manifests) -> Found:
    expressions = [*_alerts(manifests), *_panels(manifests)]
    if not expressions:
        return
    there = {_SUFFIX.sub("", name) for name in _OTHERS | _ray_metrics(manifests) | _registered()}
    for where, expression in expressions:
        for name in sorted(names(expression)):
            if _SUFFIX.sub("", name) not in there:
                yield where, f"nobody writes the metric {name}"


def expressions(manifests: Manifests) -> Found:
    """Every expression is valid PromQL by Prometheus' grammar."""
    import promql_parser

    for where, expression in [*_alerts(manifests), *_panels(manifests)]:
        try:
            promql_parser.parse(re.sub(r"\$\w+", "5m", expression))  # $__rate_interval: Grafana's
        except ValueError as fault:
            yield where, f"not PromQL: {fault}"


def names(expression: str) -> set[str]:
    """The metrics of a PromQL expression: names that are not functions, labels or keywords."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w$.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)
    return {word for word in words if word not in _WORDS and not re.fullmatch(r"(inf|nan)", word, re.I)}


def _alerts(manifests: Manifests) -> Iterator[tuple[str, str]]:
    for where, document in manifests.of("PrometheusRule"):
        for group in document["spec"]["groups"]:
            for rule in group["rules"]:
                yield f"{where} {rule.get('alert', rule.get('record'))}", str(rule["expr"])


def dashboards(manifests: Manifests) -> Iterator[tuple[str, str, Json]]:
    """ConfigMap, file and content of Grafana's dashboards, including Ray's."""
    for where, document in manifests.of("ConfigMap"):
        if document["metadata"].get("labels", {}).get("grafana_dashboard"):
            for file, text in document["data"].items():
                yield where, file, json.loads(text)


def _panels(manifests: Manifests) -> Iterator[tuple[str, str]]:
    for where, file, dashboard in dashboards(manifests):
        if not file.startswith("ray-"):
            for panel in dashboard["panels"]:
                for target in panel.get("targets", ()):
                    yield f"{where} {panel['title']}", target["expr"]


def _ray_metrics(manifests: Manifests) -> set[str]:
    texts = [json.dumps(d) for _, file, d in dashboards(manifests) if file.startswith("ray-")]
    return {name for text in texts for name in re.findall(r"\bray_[a-z0-9_]+", text)}


def _registered() -> set[str]:
    from gemel_ray.job.record import METRICS
    from gemel_ray.serving.meters import Meters

    return {metric.name for metric in Meters().registry.collect()} | {f"ray_{name}" for name in METRICS}
