"""Words that schemas are written with, and kinds that no schema of KubeRay's has a part of, field by field.

Gateway API 1.3 (Gateway, HTTPRoute); a gateway's own kinds are known by name only.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
NUMBER: Json = {"type": "integer", "format": "int32"}
TEXTS: Json = {"type": "array", "items": TEXT}
MAP: Json = {"type": "object", "additionalProperties": TEXT}
_OPEN: Json = {"type": "object"}  # not looked into


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
