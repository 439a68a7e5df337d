"""Rules for Ray's autoscaler in a cluster's spec, and for groups of fixed size without it.

Sources: KubeRay 1.7.0, controllers/ray/utils/util.go, validation.go, common/pod.go, common/rbac.go.
"""

from __future__ import annotations

from gemel_ray.deploying.manifests import Found, Json, Manifests, groups

_TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"


def sizes(manifests: Manifests) -> Found:
    """Bounds are in order. A fixed size has all three fields equal; the autoscaler's has no `replicas`."""
    for where, cluster in manifests.clusters():
        scaled = cluster.get("enableInTreeAutoscaling", False)
        for group in groups(cluster):
            name = f"{where} {group['groupName']}"
            least, most = group.get("minReplicas", 0), group.get("maxReplicas")
            if least < 0 or (most or 0) < 0:
                yield name, "minReplicas and maxReplicas must not be below 0"
            elif most is None or least > most:
                yield name, f"minReplicas ({least}) must be at most maxReplicas ({most})"
            elif not scaled and not (least == most == group.get("replicas")):
                yield name, "without the autoscaler, replicas, minReplicas and maxReplicas must be equal"
            elif scaled and "replicas" in group:
                yield name, "replicas is the autoscaler's to write: each apply would set it back"


def version(manifests: Manifests) -> Found:
    for where, cluster in manifests.clusters():
        options = cluster.get("autoscalerOptions")
        if not cluster.get("enableInTreeAutoscaling"):
            if options is not None:
                yield where, "autoscalerOptions without enableInTreeAutoscaling do nothing"
            continue
        if (options or {}).get("version") != "v2":
            yield where, "autoscalerOptions.version must be v2, written out: KubeRay acts on what it reads"
        for pod in manifests.nodes(where):
            if pod.spec.get("restartPolicy", "Never") != "Never":
                yield pod.where, "autoscaler v2 needs restartPolicy Never, or none"
            if "RAY_enable_autoscaler_v2" in pod.environment:
                yield pod.where, "RAY_enable_autoscaler_v2 is set beside autoscalerOptions.version"


def idleness(manifests: Manifests) -> Found:
    for where, cluster in manifests.clusters():
        scaled = cluster.get("enableInTreeAutoscaling", False)
        for group in groups(cluster):
            if "idleTimeoutSeconds" in group and not scaled:
                yield f"{where} {group['groupName']}", "idleTimeoutSeconds needs the autoscaler"


def sidecar(manifests: Manifests) -> Found:
    """The autoscaler's container inherits nothing from Ray's: it needs a security context and a token."""
    for where, cluster in manifests.clusters():
        if not cluster.get("enableInTreeAutoscaling"):
            continue
        options = cluster.get("autoscalerOptions", {})
        context = options.get("securityContext", {})
        if not context.get("readOnlyRootFilesystem") or context.get("allowPrivilegeEscalation") is not False:
            yield where, "autoscalerOptions.securityContext must be as Ray's container's"
        mounts = {m["mountPath"]: m["name"] for m in options.get("volumeMounts", ())}
        if "/tmp" not in mounts:
            yield where, "autoscalerOptions.volumeMounts must hold /tmp: its root is read-only"
        head = cluster["headGroupSpec"]["template"]["spec"]
        if head.get("automountServiceAccountToken", True) or _projects_token(head, mounts.get(_TOKENS)):
            continue
        yield where, f"the autoscaler has no token for the API server: none is mounted at {_TOKENS}"


def _projects_token(head: Json, volume: str | None) -> bool:
    sources = [
        source
        for v in head.get("volumes", ())
        if v["name"] == volume
        for source in v.get("projected", {}).get("sources", ())
    ]
    return any("serviceAccountToken" in source for source in sources)
