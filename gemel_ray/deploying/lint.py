"""Runs all rules over all of deploy/. A rule has a name, and is a function of the rendered manifests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemel_ray.deploying import (
    autoscaling,
    carried,
    metrics,
    operator,
    pods,
    references,
    schema,
    serve_config,
    values,
    versions,
)
from gemel_ray.deploying.manifests import Found, Manifests, kind_and_name, rendered


def schemas(manifests: Manifests) -> Found:
    for document in manifests.documents:
        for path, what in schema.faults(document):
            yield kind_and_name(document), f"{path}: {what}"


RULES: dict[str, Callable[[Manifests], Found]] = {
    "schema": schemas,
    "label": values.labels,
    "scheduling": values.scheduling,
    "handler": values.handlers,
    "port-value": values.port_values,
    "network-value": values.network_values,
    "object-value": values.object_values,
    "name": operator.names,
    "group-name": operator.group_names,
    "start-parameters": operator.start_parameters,
    "start-flags": serve_config.start_flags,
    "ray-container": operator.ray_container,
    "whole-cpus": operator.whole_cpus,
    "job-end": operator.job_end,
    "job-retry": operator.job_retry,
    "entrypoint": operator.entrypoint,
    "submission": operator.submission,
    "queue": operator.queue,
    "upgrade": operator.upgrade,
    "in-place": operator.in_place,
    "redis-cleanup": operator.cleanup,
    "serve-port": operator.serve_port,
    "authentication": operator.authentication,
    "fault-tolerance": operator.fault_tolerance,
    "group-size": autoscaling.sizes,
    "autoscaler-version": autoscaling.version,
    "idle-timeout": autoscaling.idleness,
    "autoscaler-sidecar": autoscaling.sidecar,
    "non-root": pods.non_root,
    "read-only-root": pods.read_only_root,
    "resources": pods.resources,
    "memory": values.sizes,
    "scratch-limit": pods.scratch,
    "api-token": pods.tokens,
    "mounts": pods.mounts,
    "reference": references.names,
    "redis-address": references.stores,
    "route": references.routes,
    "selector": references.selectors,
    "port": references.ports,
    "disruption-budget": references.budgets,
    "shared-claim": references.claims,
    "network-policy": references.policies,
    "serve-options": serve_config.options,
    "http-port": serve_config.http_port,
    "import-path": serve_config.import_paths,
    "serve-arguments": serve_config.arguments,
    "command": carried.command,
    "configuration": carried.configuration,
    "gpu-count": carried.gpus,
    "room": carried.room,
    "surge": carried.surge,
    "drain": carried.drain,
    "image-version": versions.images,
    "ray-version": versions.ray,
    "qdrant-version": versions.qdrant,
    "metric": metrics.known,
    "promql": metrics.expressions,
}


@dataclass(frozen=True)
class Fault:
    """Something that a rule refuses."""

    rule: str
    folder: str  # in deploy/
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.where}: {self.what} ({self.rule})"


def lint(deploy: Path, existing: Sequence[str] = (), digests: bool = False) -> list[Fault]:
    """All faults of the manifests under `deploy`, in a cluster that already has the objects `existing`
    (KIND/NAME); with `digests` also every image that is named only by its tag. ValueError where they cannot
    be rendered."""
    rules = RULES | ({"image-digest": versions.digests} if digests else {})
    return [fault for manifests in rendered(deploy, existing) for fault in refused(manifests, rules)]


def refused(manifests: Manifests, rules: Mapping[str, Callable[[Manifests], Found]] = RULES) -> list[Fault]:
    """Faults by every rule; only the schema's where there are any, since the other rules rely on it."""
    broken = [Fault("schema", manifests.folder, *found) for found in schemas(manifests)]
    return broken or [
        Fault(name, manifests.folder, where, what)
        for name, rule in rules.items()
        for where, what in rule(manifests)
    ]
