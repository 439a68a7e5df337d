"""Kinds of Kubernetes and of gateways that no schema of KubeRay's has a part of, field by field.

Gateway API 1.3 (Gateway, HTTPRoute); a gateway's own kinds are known by name only.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_NUMBER: Json = {"type": "integer", "format": "int32"}
_TEXTS: Json = {"type": "array", "items": _TEXT}
_MAP: Json = {"type": "object", "additionalProperties": _TEXT}
_OPEN: Json = {"type": "object"}  # not looked into


def _object(required: tuple[str, ...] = (), **properties: Json) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_RULES = _list(_object(("verbs",), apiGroups=_TEXTS, resources=_TEXTS, resourceNames=_TEXTS, verbs=_TEXTS))
_REFERENCE = _object(
    ("name",), group=_TEXT, kind=_TEXT, namespace=_TEXT, name=_TEXT, sectionName=_TEXT, port=_NUMBER,
    weight=_NUMBER, filters=_list(_OPEN),
)  # fmt: skip
_LISTENER = _object(
    ("name", "port", "protocol"),
    name=_TEXT,
    port=_NUMBER,
    protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
    hostname=_TEXT,
    tls=_object(
        mode={"enum": ["Terminate", "Passthrough"]}, certificateRefs=_list(_REFERENCE), options=_MAP,
        frontendValidation=_OPEN,
    ),
    allowedRoutes=_OPEN,
)  # fmt: skip
_ROUTE = _object(
    name=_TEXT,
    matches=_list(_OPEN),
    filters=_list(_OPEN),
    backendRefs=_list(_REFERENCE),
    timeouts=_object(request=_TEXT, backendRequest=_TEXT),
    retry=_OPEN,
    sessionPersistence=_OPEN,
)

KINDS: dict[str, dict[str, Json]] = {
    "scheduling.k8s.io/v1 PriorityClass": {
        "value": _NUMBER,
        "globalDefault": _FLAG,
        "description": _TEXT,
        "preemptionPolicy": {"enum": ["PreemptLowerPriority", "Never"]},
    },
    "storage.k8s.io/v1 StorageClass": {
        "provisioner": _TEXT,
        "parameters": _MAP,
        "reclaimPolicy": {"enum": ["Retain", "Delete"]},
        "mountOptions": _TEXTS,
        "allowVolumeExpansion": _FLAG,
        "volumeBindingMode": {"enum": ["Immediate", "WaitForFirstConsumer"]},
        "allowedTopologies": _list(_OPEN),
    },
    "rbac.authorization.k8s.io/v1 Role": {"rules": _RULES},
    "gateway.networking.k8s.io/v1 Gateway": {
        "spec": _object(
            ("gatewayClassName", "listeners"), gatewayClassName=_TEXT, listeners=_list(_LISTENER),
            addresses=_list(_OPEN), infrastructure=_OPEN,
        )
    },
    "gateway.networking.k8s.io/v1 HTTPRoute": {
        "spec": _object(parentRefs=_list(_REFERENCE), hostnames=_TEXTS, rules=_list(_ROUTE))
    },
    "gateway.envoyproxy.io/v1alpha1 BackendTrafficPolicy": {"spec": _OPEN},
}  # fmt: skip
