"""Rules for the references of a gateway's kinds: a route's Service and Gateway, certificates."""

from __future__ import annotations

from collections.abc import Iterator

from gemel_ray.deploying.manifests import Found, Json, Manifests

_KUBERAYS = "-serve-svc"  # what KubeRay appends to a RayService's name (common/service.go at 1.7.0)


def routes(manifests: Manifests) -> Found:
    """Names exist: with an unknown name the gateway answers 500, and `kubectl apply` reports nothing."""
    there = {(d["kind"], d["metadata"]["name"]) for d in (*manifests.around, *manifests.documents)}
    there |= {("Service", f"{name}{_KUBERAYS}") for kind, name in there if kind == "RayService"}
    for where, kind, name in _named(manifests):
        if (kind, name) not in there:
            yield where, f"there is no {kind} {name}; --existing {kind}/{name} where the cluster has it"


def _named(manifests: Manifests) -> Iterator[tuple[str, str, str]]:
    for where, document in manifests.of("Gateway"):
        for listener in document["spec"]["listeners"]:
            for certificate in listener.get("tls", {}).get("certificateRefs", ()):
                yield where, "Secret", certificate["name"]
    for where, document in manifests.of("HTTPRoute"):
        references: list[Json] = document["spec"].get("parentRefs", [])
        yield from ((where, r.get("kind", "Gateway"), r["name"]) for r in references)
        for rule in document["spec"].get("rules", ()):
            yield from ((where, r.get("kind", "Service"), r["name"]) for r in rule.get("backendRefs", ()))
