"""Checks manifests against their schemas, as strictly as `kubectl apply --validate=strict`: unknown fields,
wrong types, numbers out of range, list items with the same key.

Custom resources have the schemas of their definitions (crds.json). The schemas of Kubernetes' kinds are made
from parts of these (a pod, a service, a claim) and the few fields around them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gemel_ray.deploying.manifests import Json

# Building blocks of schemas, and kinds that are not part of any schema of KubeRay's, field by field.
#
# Gateway API 1.3 (Gateway, HTTPRoute); of a gateway implementation's kinds only the names are known.


TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
NUMBER: Json = {"type": "integer", "format": "int32"}
TEXTS: Json = {"type": "array", "items": TEXT}
MAP: Json = {"type": "object", "additionalProperties": TEXT}
_OPEN: Json = {"type": "object"}  # not checked


def object_of(required: tuple[str, ...] = (), **properties: Json) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


_RULES = list_of(object_of(("verbs",), apiGroups=TEXTS, resources=TEXTS, resourceNames=TEXTS, verbs=TEXTS))
_REFERENCE = object_of(
    ("name",), group=TEXT, kind=TEXT, namespace=TEXT, name=TEXT, sectionName=TEXT, port=NUMBER,
    weight=NUMBER, filters=list_of(_OPEN),
)  # fmt: skip
_LISTENER = object_of(
    ("name", "port", "protocol"),
    name=TEXT,
    port=NUMBER,
    protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
    hostname=TEXT,
    tls=object_of(
        mode={"enum": ["Terminate", "Passthrough"]}, certificateRefs=list_of(_REFERENCE), options=MAP,
        frontendValidation=_OPEN,
    ),
    allowedRoutes=_OPEN,
)  # fmt: skip
_ROUTE = object_of(
    name=TEXT,
    matches=list_of(_OPEN),
    filters=list_of(_OPEN),
    backendRefs=list_of(_REFERENCE),
    timeouts=object_of(request=TEXT, backendRequest=TEXT),
    retry=_OPEN,
    sessionPersistence=_OPEN,
)

KINDS: dict[str, dict[str, Json]] = {
    "scheduling.k8s.io/v1 PriorityClass": {
        "value": NUMBER,
        "globalDefault": FLAG,
        "description": TEXT,
        "preemptionPolicy": {"enum": ["PreemptLowerPriority", "Never"]},
    },
    "storage.k8s.io/v1 StorageClass": {
        "provisioner": TEXT,
        "parameters": MAP,
        "reclaimPolicy": {"enum": ["Retain", "Delete"]},
        "mountOptions": TEXTS,
        "allowVolumeExpansion": FLAG,
        "volumeBindingMode": {"enum": ["Immediate", "WaitForFirstConsumer"]},
        "allowedTopologies": list_of(_OPEN),
    },
    "rbac.authorization.k8s.io/v1 Role": {"rules": _RULES},
    "gateway.networking.k8s.io/v1 Gateway": {
        "spec": object_of(
            ("gatewayClassName", "listeners"), gatewayClassName=TEXT, listeners=list_of(_LISTENER),
            addresses=list_of(_OPEN), infrastructure=_OPEN,
        )
    },
    "gateway.networking.k8s.io/v1 HTTPRoute": {
        "spec": object_of(parentRefs=list_of(_REFERENCE), hostnames=TEXTS, rules=list_of(_ROUTE))
    },
    "gateway.envoyproxy.io/v1alpha1 BackendTrafficPolicy": {"spec": _OPEN},
}  # fmt: skip


_EITHER: Json = {"anyOf": [NUMBER, TEXT]}
_TEMPLATE = "spec.headGroupSpec.template"  # where in a RayCluster the parts of Kubernetes are
_POLICY = "spec.networkPolicy.head"


def faults(document: Json) -> Iterator[tuple[str, str]]:
    """Path in the document, and what is wrong there."""
    kind = f"{document.get('apiVersion')} {document.get('kind')}"
    validator = _validators().get(kind)
    if validator is None:
        yield "$", f"there is no kind {kind} that lint-deploy knows"
        return
    for fault in validator.iter_errors(document):
        yield fault.json_path, fault.message


def _schemas() -> tuple[dict[str, Json], dict[str, Json]]:
    """Schemas by apiVersion and kind, and the definitions that they refer to."""
    crds: dict[str, Json] = json.loads(Path(__file__).with_name("crds.json").read_text())
    metadata = _at(crds, "RayCluster", f"{_TEMPLATE}.metadata")
    fields = _kubernetes(crds, metadata) | KINDS
    builtin = {name: object_of(("metadata",), **several) for name, several in fields.items()}
    custom = {name: schema for name, schema in crds.items() if " " in name}
    for schema in (builtin | custom).values():
        schema["properties"] |= {"apiVersion": TEXT, "kind": TEXT, "metadata": metadata}
        schema["properties"].pop("status", None)
    return builtin | custom, crds


def _kubernetes(crds: dict[str, Json], metadata: Json) -> dict[str, dict[str, Json]]:
    """The fields of Kubernetes' kinds."""
    template = _at(crds, "RayCluster", _TEMPLATE)
    claim = _at(crds, "RayCluster", f"{_TEMPLATE}.spec.volumes.ephemeral.volumeClaimTemplate.spec")
    selector = _at(crds, "RayCluster", f"{_POLICY}.ingressRules.from.podSelector")
    job = _job(template)
    stateful = _stateful_set(template, selector, object_of(metadata=metadata, spec=claim))
    policy = object_of(
        ("podSelector",),
        podSelector=selector,
        policyTypes=list_of({"enum": ["Ingress", "Egress"]}),
        ingress=list_of(_at(crds, "RayCluster", f"{_POLICY}.ingressRules")),
        egress=list_of(_at(crds, "RayCluster", f"{_POLICY}.egressRules")),
    )
    budget = object_of(
        minAvailable=_EITHER,
        maxUnavailable=_EITHER,
        selector=selector,
        unhealthyPodEvictionPolicy={"enum": ["IfHealthyBudget", "AlwaysAllow"]},
    )
    return {
        "v1 ConfigMap": {"data": MAP, "binaryData": MAP, "immutable": FLAG},
        "v1 Secret": {"data": MAP, "stringData": MAP, "type": TEXT, "immutable": FLAG},
        "v1 PersistentVolumeClaim": {"spec": claim},
        "v1 Pod": {"spec": _at(crds, "RayCluster", f"{_TEMPLATE}.spec")},
        "v1 Service": {"spec": _at(crds, "RayService", "spec.serveService.spec")},
        "apps/v1 StatefulSet": {"spec": stateful},
        "batch/v1 Job": {"spec": job},
        "batch/v1 CronJob": {"spec": _cron_job(object_of(metadata=metadata, spec=job))},
        "policy/v1 PodDisruptionBudget": {"spec": budget},
        "networking.k8s.io/v1 NetworkPolicy": {"spec": policy},
    }


def _at(crds: dict[str, Json], kind: str, path: str) -> Json:
    """The schema of a field of one of Ray's kinds; for a list, that of its items."""
    schema = crds[f"ray.io/v1 {kind}"]
    for field in path.split("."):
        schema = _resolved(schema, crds)["properties"][field]
        schema = _resolved(schema, crds).get("items", schema)
    return schema


def _resolved(schema: Json, crds: dict[str, Json]) -> Json:
    while "$ref" in schema:
        schema = crds[schema["$ref"].removeprefix("#/definitions/")]
    return schema


def _job(template: Json) -> Json:
    numbers = ("backoffLimit", "ttlSecondsAfterFinished", "completions", "parallelism")
    seconds = {"activeDeadlineSeconds": {"type": "integer", "format": "int64"}}
    return object_of(("template",), template=template, **dict.fromkeys(numbers, NUMBER), **seconds)


def _cron_job(job_template: Json) -> Json:
    return object_of(
        ("schedule", "jobTemplate"),
        schedule=TEXT,
        timeZone=TEXT,
        jobTemplate=job_template,
        concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
        startingDeadlineSeconds={"type": "integer", "format": "int64"},
        successfulJobsHistoryLimit=NUMBER,
        failedJobsHistoryLimit=NUMBER,
        suspend=FLAG,
    )


def _stateful_set(template: Json, selector: Json, claim: Json) -> Json:
    kept = {"enum": ["Retain", "Delete"]}
    return object_of(
        ("selector", "template", "serviceName"),
        serviceName=TEXT,
        replicas=NUMBER,
        selector=selector,
        template=template,
        volumeClaimTemplates=list_of(claim),
        podManagementPolicy={"enum": ["OrderedReady", "Parallel"]},
        updateStrategy=object_of(type={"enum": ["RollingUpdate", "OnDelete"]}),
        persistentVolumeClaimRetentionPolicy=object_of(whenDeleted=kept, whenScaled=kept),
    )


@cache
def _validators() -> Json:
    import jsonschema

    plain = jsonschema.Draft4Validator.VALIDATORS
    kinds, shared = _schemas()

    def known(validator: Any, properties: Json, value: Any, schema: Json) -> Iterator[Any]:
        if isinstance(value, dict) and "additionalProperties" not in schema:
            for name in value.keys() - properties.keys():
                yield jsonschema.ValidationError(f"unknown field {name}")
        yield from plain["properties"](validator, properties, value, schema)

    def required(validator: Any, names: list[str], value: Any, schema: Json) -> Iterator[Any]:
        fields = schema.get("properties", {})
        absent = [n for n in names if "default" not in fields.get(n, {})]  # a default is filled in first
        yield from plain["required"](validator, absent, value, schema)

    def distinct(validator: Any, keys: list[str], value: Any, schema: Json) -> Iterator[Any]:
        defaults = _resolved(schema["items"], shared)["properties"]
        items = [tuple(i.get(k, defaults[k].get("default")) for k in keys) for i in value]
        if len(items) != len(set(items)):
            yield jsonschema.ValidationError(f"two items have the same {', '.join(keys)}")

    strict = jsonschema.validators.extend(
        jsonschema.Draft4Validator,
        {"properties": known, "required": required, "x-kubernetes-list-map-keys": distinct},
    )
    formats = jsonschema.FormatChecker(formats=())
    for bits in (32, 64):
        formats.checkers[f"int{bits}"] = (_within(bits), ())
    return {
        name: strict(schema | {"definitions": shared}, format_checker=formats)
        for name, schema in kinds.items()
    }


def _within(bits: int) -> Any:
    return lambda value: not isinstance(value, int) or -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
