"""Rules for references between manifests: names, keys, labels and ports must exist.

A folder may refer to objects in another folder of deploy/ (the claim, Qdrant), which is applied first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemel_ray.deploying.manifests import Found, Json, Manifests, Pod, groups

# Ports of a Ray pod that lists none (KubeRay's common/pod.go).
_RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000, "metrics": 8080}

_PART = "app.kubernetes.io/part-of"
_ADMITTED = {
    "priorityClassName": "PriorityClass",
    "serviceAccountName": "ServiceAccount",
    "runtimeClassName": "RuntimeClass",
}
_KUBERAYS = "-serve-svc"  # what KubeRay appends to a RayService's name (common/service.go at 1.7.0)
_EVERYWHERE = "kube-root-ca.crt"  # Kubernetes puts it into every namespace


def names(manifests: Manifests) -> Found:
    """Every ConfigMap, Secret and claim that is named exists, with the key that is read from it."""
    there = {(d["kind"], d["metadata"]["name"]): d for d in (*manifests.around, *manifests.documents)}
    for where, kind, name, key in _named(manifests):
        found = there.get((kind, name))
        if found is None:
            yield where, f"there is no {kind} {name}; --existing {kind}/{name} where the cluster has it"
        elif key and key not in found.get("data", {}) | found.get("stringData", {}):
            yield where, f"{kind} {name} has no key {key}"


def routes(manifests: Manifests) -> Found:
    """Names exist: with an unknown name the gateway answers 500, and `kubectl apply` reports nothing."""
    there = {(d["kind"], d["metadata"]["name"]) for d in (*manifests.around, *manifests.documents)}
    there |= {("Service", f"{name}{_KUBERAYS}") for kind, name in there if kind == "RayService"}
    for where, kind, name in _routed(manifests):
        if (kind, name) not in there:
            yield where, f"there is no {kind} {name}; --existing {kind}/{name} where the cluster has it"


def _routed(manifests: Manifests) -> Iterator[tuple[str, str, str]]:
    for where, document in manifests.of("Gateway"):
        for listener in document["spec"]["listeners"]:
            for certificate in listener.get("tls", {}).get("certificateRefs", ()):
                yield where, "Secret", certificate["name"]
    for where, document in manifests.of("HTTPRoute"):
        references: list[Json] = document["spec"].get("parentRefs", [])
        yield from ((where, r.get("kind", "Gateway"), r["name"]) for r in references)
        for rule in document["spec"].get("rules", ()):
            yield from ((where, r.get("kind", "Service"), r["name"]) for r in rule.get("backendRefs", ()))


def stores(manifests: Manifests) -> Found:
    """A Redis with a short name is a Service of these manifests, with that port."""
    there = {
        d["metadata"]["name"]: d for d in (*manifests.around, *manifests.documents) if d["kind"] == "Service"
    }
    for where, spec in manifests.clusters():
        address = spec.get("gcsFaultToleranceOptions", {}).get("redisAddress", "")
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not address or "." in host:  # none, or outside
            continue
        if host not in there:
            yield where, f"redisAddress: there is no Service {host}"
        elif port not in {str(p["port"]) for p in there[host]["spec"]["ports"]}:
            yield where, f"redisAddress: Service {host} has no port {port}"


def _named(manifests: Manifests) -> Iterator[tuple[str, str, str, str]]:
    """References: where, kind, name, key ('' for all)."""
    for pod in manifests.pods():
        yield from ((pod.where, *found) for found in _of_volumes(pod))
        yield from ((pod.where, *found, "") for found in _admitted_by(pod))
        for container in pod.containers:
            yield from ((pod.where, *found) for found in _key_references(container.get("env", ())))
            for source in container.get("envFrom", ()):
                for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if field in source:
                        yield pod.where, kind, source[field]["name"], ""
    for where, spec in manifests.clusters():
        options = [spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {})]
        yield from ((where, *found) for found in _key_references(options))
        if secret := spec.get("authOptions", {}).get("secretName"):
            yield where, "Secret", secret, "auth_token"
    for where, document in manifests.of("PodMonitor"):
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            if credentials := endpoint.get("authorization", {}).get("credentials"):
                yield where, "Secret", credentials["name"], credentials["key"]


def _admitted_by(pod: Pod) -> Iterator[tuple[str, str]]:
    """Objects that pod admission looks up, except those that Kubernetes creates itself."""
    for field, kind in _ADMITTED.items():
        name = pod.spec.get(field, "")
        if name and name != "default" and not name.startswith("system-"):
            yield kind, name
    for secret in pod.spec.get("imagePullSecrets", ()):
        yield "Secret", secret["name"]


def _of_volumes(pod: Pod) -> Iterator[tuple[str, str, str]]:
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], ""
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], ""
        for source in volume.get("projected", {}).get("sources", ()):
            name = source.get("configMap", {}).get("name", _EVERYWHERE)
            if name != _EVERYWHERE:
                yield "ConfigMap", name, ""
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], ""


def _key_references(entries: Any) -> Iterator[tuple[str, str, str]]:
    for entry in entries:
        source = entry.get("valueFrom", {})
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if field in source:
                yield kind, source[field]["name"], source[field]["key"]


def selectors(manifests: Manifests) -> Found:
    """Every selector finds pods, here or in another folder; a StatefulSet's finds its pods."""
    pods = [*manifests.pods(), *Manifests("", manifests.around).pods()]
    for where, selector in _selecting(manifests):
        if not any(matches(selector, pod.labels) for pod in pods):
            yield where, f"selects no pod of ours: {selector}"
    for where, document in manifests.of("StatefulSet"):
        (template,) = [pod for pod in manifests.pods() if pod.where == where]
        if not matches(document["spec"]["selector"], template.labels):
            yield where, "its selector does not select its own pods"


def _selecting(manifests: Manifests) -> Iterator[tuple[str, Json]]:
    for where, document in manifests.of("Service"):
        yield where, {"matchLabels": document["spec"].get("selector", {})}
    for where, document in manifests.of("PodDisruptionBudget", "PodMonitor"):
        yield where, document["spec"]["selector"]
    for where, document in manifests.of("NetworkPolicy"):
        spec = document["spec"]
        yield where, spec["podSelector"]
        peers = [peer for rule in spec.get("ingress", ()) for peer in rule.get("from", ())]
        peers += [peer for rule in spec.get("egress", ()) for peer in rule.get("to", ())]
        for selector in (peer.get("podSelector", {}) for peer in peers):
            if _PART in selector.get("matchLabels", {}):  # the others are outside these manifests
                yield where, selector


def matches(selector: Json, labels: Json) -> bool:
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for term in selector.get("matchExpressions", ()):
        label, values = labels.get(term["key"]), term.get("values", ())
        true = {
            "In": label in values,
            "NotIn": label not in values,
            "Exists": label is not None,
            "DoesNotExist": label is None,
        }
        if not true[term["operator"]]:
            return False
    return True


def ports(manifests: Manifests) -> Found:
    """Ports that are targeted, by name or number, belong to a selected pod."""
    pods = [*manifests.pods(), *Manifests("", manifests.around).pods()]
    for where, selector, port in _targets(manifests):
        selected = [pod for pod in pods if matches(selector, pod.labels)]
        known = {p for pod in selected for p in _open(pod)}
        if selected and port not in known:
            yield where, f"port {port} is none of the pods it selects ({sorted(map(str, known))})"


def _targets(manifests: Manifests) -> Iterator[tuple[str, Json, Any]]:
    for where, document in manifests.of("Service"):
        for port in document["spec"]["ports"]:
            yield (
                where,
                {"matchLabels": document["spec"].get("selector", {})},
                port.get("targetPort", port["port"]),
            )
    for where, document in manifests.of("PodMonitor"):
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            yield where, document["spec"]["selector"], endpoint.get("port")


def _open(pod: Pod) -> set[Any]:
    listed = pod.main.get("ports")
    if listed is None and pod.role in ("head", "worker"):
        return {*_RAY_PORTS, *_RAY_PORTS.values()}
    names = {port.get("name") for port in listed or ()}
    return names | {port["containerPort"] for port in listed or ()}


def budgets(manifests: Manifests) -> Found:
    """A Ray cluster has no scale subresource, so that only an integer minAvailable works for its pods."""
    for where, document in manifests.of("PodDisruptionBudget"):
        spec = document["spec"]
        ray = [p for p in manifests.pods() if p.role != "plain" and matches(spec["selector"], p.labels)]
        if ray and not isinstance(spec.get("minAvailable"), int):
            yield where, "over Ray's pods only a whole minAvailable works (kuberay#2662)"
        elif ray and spec["minAvailable"] >= _fewest(manifests):
            yield where, "minAvailable must be below the groups' minReplicas, else no drain of a node ends"


def _fewest(manifests: Manifests) -> int:
    """The number of workers that always exist."""
    return sum(group.get("minReplicas", 0) for _, spec in manifests.clusters() for group in groups(spec))


def claims(manifests: Manifests) -> Found:
    """Pods on several nodes need a volume that several nodes may write to."""
    shared: set[str] = set()
    for document in (*manifests.around, *manifests.documents):
        if document["kind"] == "PersistentVolumeClaim" and "ReadWriteMany" in document["spec"]["accessModes"]:
            shared.add(document["metadata"]["name"])
    for pod in manifests.pods():
        for kind, name, _ in _of_volumes(pod):
            if kind == "PersistentVolumeClaim" and pod.role != "plain" and name not in shared:
                yield pod.where, f"claim {name} must offer ReadWriteMany: several pods write to it"


def policies(manifests: Manifests) -> Found:
    """A NetworkPolicy covers every Ray pod, in both directions."""
    for pod in manifests.pods():
        if pod.role == "plain":
            continue
        found = {
            direction
            for _, document in Manifests("", [*manifests.documents]).of("NetworkPolicy")
            if matches(document["spec"]["podSelector"], pod.labels)
            for direction in document["spec"].get("policyTypes", ())
        }
        for direction in sorted({"Ingress", "Egress"} - found):
            yield pod.where, f"no NetworkPolicy bounds its {direction}"
