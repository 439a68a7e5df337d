"""Rules for every pod: not as root, writes only to declared places, bounded resources.

Knows nothing of Ray except that its pods need a place for their sessions.
"""

from __future__ import annotations

from gemel_ray.deploying.manifests import Found, Manifests, Pod

_HOMES = (
    "HOME",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "MPLCONFIGDIR",
    "VLLM_CACHE_ROOT",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
)


def non_root(manifests: Manifests) -> Found:
    """Pods meet the Restricted Pod Security Standard."""
    for pod in manifests.pods():
        whole = pod.spec.get("securityContext", {})
        if whole.get("runAsNonRoot") is not True or not whole.get("runAsUser"):
            yield pod.where, "securityContext must say runAsNonRoot and a runAsUser"
        if whole.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield pod.where, "securityContext must say seccompProfile RuntimeDefault"
        for container in pod.containers:
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False:
                yield pod.where, f"{container['name']} must say allowPrivilegeEscalation: false"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield pod.where, f"{container['name']} must drop ALL capabilities"


def read_only_root(manifests: Manifests) -> Found:
    """The root is read-only, so there are mounts for what is written: /tmp, homes and caches."""
    for pod in manifests.pods():
        for container in pod.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield pod.where, f"{container['name']} must say readOnlyRootFilesystem: true"
        if pod.role not in ("head", "worker"):
            continue
        writable = [m["mountPath"] for m in pod.main.get("volumeMounts", ()) if not m.get("readOnly")]
        if "/tmp" not in writable:
            yield pod.where, "/tmp must be a volume: Ray writes its sessions there, and its root is read-only"
        for name in _HOMES:
            value = pod.environment.get(name, {}).get("value", "")
            if not any(value == path or value.startswith(f"{path}/") for path in writable):
                yield pod.where, f"{name} ({value or 'not set'}) is not under a writable mount"


def resources(manifests: Manifests) -> Found:
    """Requests and limits are set, and equal for memory and GPUs, since KubeRay reads the limits. CPUs have a
    limit, too: a quota on limits.cpu refuses pods without, and a limit range might set a lower one."""
    for where, cluster in manifests.clusters():
        if cluster.get("enableInTreeAutoscaling"):
            scaler = cluster.get("autoscalerOptions", {}).get("resources", {})
            if not {"cpu", "memory"} <= scaler.get("limits", {}).keys():
                yield where, "autoscalerOptions.resources must limit CPUs and memory"
    for pod in manifests.pods():
        for container in pod.containers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            if "cpu" not in requests or not {"cpu", "memory"} <= limits.keys():
                yield pod.where, f"{container['name']} must request CPUs, and limit memory and CPUs"
            for name in sorted((requests.keys() | limits.keys()) - {"cpu"}):
                if requests.get(name) != limits.get(name):
                    yield pod.where, f"{container['name']}'s request and limit of {name} must be equal"


def scratch(manifests: Manifests) -> Found:
    """Volumes on a node's disk are bounded: a pod above the limit is evicted before it fills the disk."""
    for pod in manifests.pods():
        for volume in pod.spec.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield pod.where, f"volume {volume['name']} needs a sizeLimit"


def tokens(manifests: Manifests) -> Found:
    for pod in manifests.pods():
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield (
                pod.where,
                "automountServiceAccountToken must be false: the API server is none of its business",
            )


def mounts(manifests: Manifests) -> Found:
    for pod in manifests.pods():
        volumes = {v["name"] for v in pod.spec.get("volumes", ())} | pod_claims(manifests, pod)
        mounted = {m["name"] for container in pod.containers for m in container.get("volumeMounts", ())}
        for name in sorted(mounted - volumes):
            yield pod.where, f"there is no volume {name}"
        for name in sorted(volumes - mounted - _sidecars(manifests, pod)):
            yield pod.where, f"volume {name} is mounted nowhere"


def pod_claims(manifests: Manifests, pod: Pod) -> set[str]:
    """Volumes that a StatefulSet makes for its pods."""
    return {
        claim["metadata"]["name"]
        for where, document in manifests.of("StatefulSet")
        if where == pod.where
        for claim in document["spec"].get("volumeClaimTemplates", ())
    }


def _sidecars(manifests: Manifests, pod: Pod) -> set[str]:
    """Volumes of the autoscaler, which KubeRay adds to the head's pod."""
    for where, cluster in manifests.clusters():
        if pod.where == f"{where} head":
            return {m["name"] for m in cluster.get("autoscalerOptions", {}).get("volumeMounts", ())}
    return set()
