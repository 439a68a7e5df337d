"""What KubeRay 1.7 requires beyond its schema: it refuses the rest when it is applied, or later, silently.

Sources: KubeRay's ray-operator/controllers/ray/utils/validation.go, common/job.go, common/service.go,
common/pod.go at 1.7.0. This project's own rules (retries, a head without work) say so.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from gemel_ray.deploying.manifests import Found, Json, Manifests, Pod, groups
from gemel_ray.deploying.references import matches

_LONGEST = {"RayJob": 47, "RayService": 47, "RayCluster": 53}
_STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")


def names(manifests: Manifests) -> Found:
    """Names leave room for what KubeRay appends, and are valid for a Service."""
    for where, document in manifests.of(*_LONGEST):
        name, most = document["metadata"].get("name", ""), _LONGEST[document["kind"]]
        if len(name) > most or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield where, f"the name must be a DNS label of at most {most} characters"
    for where, document in manifests.of("RayService"):
        head = document["spec"]["rayClusterConfig"]["headGroupSpec"]
        if head.get("headService", {}).get("metadata", {}).get("name"):
            yield where, "headService must not have a name: clusters of an upgrade need one each"


def group_names(manifests: Manifests) -> Found:
    """Group names are unique, and short enough for the names and labels of their pods."""
    for where, cluster in manifests.clusters():
        names = [group["groupName"] for group in groups(cluster)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield where, f"two groups are called {name}: KubeRay would count the pods of both as each one's"
        for name in names:
            if len(name) > 30 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
                yield (
                    where,
                    f"the group name {name!r} must be at most 30 of a-z 0-9 -, beginning with a letter",
                )


def start_parameters(manifests: Manifests) -> Found:
    """Resources are set in one place, and (our rule) the head has none: work there would end with it."""
    for where, cluster in manifests.clusters():
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{where} head", 'rayStartParams must say num-cpus: "0", so that no work is put there'
        for group in (cluster["headGroupSpec"], *groups(cluster)):
            params = group.get("rayStartParams") or {}
            name = f"{where} {group.get('groupName', 'head')}"
            if "labels" in params:
                yield name, "rayStartParams must not hold labels"
            if group.get("resources") and params.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
                yield name, "resources stand in rayStartParams and in resources; KubeRay takes one of them"


def job_end(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayJob"):
        spec = document["spec"]
        ends = spec.get("shutdownAfterJobFinishes", False)
        ttl = spec.get("ttlSecondsAfterFinished", 0)
        if "deletionStrategy" in spec and (ends or ttl):
            yield where, "deletionStrategy excludes shutdownAfterJobFinishes and ttlSecondsAfterFinished"
        elif "deletionStrategy" not in spec and not ends:
            yield where, "without shutdownAfterJobFinishes the cluster stays when the job is done"
        if spec.get("suspend") and not ends:
            yield where, "suspend needs shutdownAfterJobFinishes"
        rules = spec.get("deletionStrategy", {}).get("deletionRules", ())
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling") and any(
            rule["policy"] == "DeleteWorkers" for rule in rules
        ):
            yield where, "DeleteWorkers is refused with the autoscaler: DeleteCluster"
        if ttl < 0:
            yield where, "ttlSecondsAfterFinished must not be below 0"
        for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if spec.get(name, 1) <= 0:
                yield where, f"{name} must be above 0"


def job_retry(manifests: Manifests) -> Found:
    """Our rule: a failed job is retried, in a new cluster, and resumes from its output."""
    for where, document in manifests.of("RayJob"):
        spec = document["spec"]
        if spec.get("backoffLimit", 0) < 1:
            yield where, "backoffLimit must be at least 1: a retry is a new cluster that resumes"
        (head,) = (pod for pod in manifests.nodes(where) if pod.role == "head")
        if head.environment.get("GEMEL_RAY_STOP_MISTAKES", {}).get("value") != "1":
            yield where, "GEMEL_RAY_STOP_MISTAKES must be 1 on the head, or a wrong path is retried"
        if "activeDeadlineSeconds" in spec:
            yield where, "activeDeadlineSeconds ends a job for good, without a retry"
        if "gcsFaultToleranceOptions" in spec["rayClusterSpec"]:
            yield where, "GCS fault tolerance is for services: a job resumes from its output"


def entrypoint(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayJob"):
        line = document["spec"].get("entrypoint", "")
        try:
            plain = shlex.join(shlex.split(line)) == line
        except ValueError:
            plain = False
        if not line or not plain:
            yield where, "entrypoint is pasted into a shell of the submitter's pod: write one plain command"


def submission(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayJob"):
        spec = document["spec"]
        mode = spec.get("submissionMode", "K8sJobMode")
        if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"):
            yield where, f"there is no submissionMode {mode}"
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if mode == "SidecarMode" and name in spec:
                yield where, f"SidecarMode refuses {name}"
        if spec.get("entrypointNumCpus"):
            yield where, "entrypointNumCpus makes the driver wait for CPUs, and the head has none"


def queue(manifests: Manifests) -> Found:
    """Kueue's webhook (0.19) refuses clusters that change size, unless its gate for elastic jobs is on."""
    for where, document in manifests.of("RayJob"):
        queued = "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {})
        if queued and document["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield where, "Kueue takes no cluster with enableInTreeAutoscaling: groups of fixed size"


def upgrade(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayService"):
        strategy = document["spec"].get("upgradeStrategy", {})
        kind, options = strategy.get("type", "NewCluster"), strategy.get("clusterUpgradeOptions")
        incremental = kind == "NewClusterWithIncrementalUpgrade"
        if kind not in _STRATEGIES:
            yield where, f"upgradeStrategy.type must be one of {', '.join(_STRATEGIES)}"
        if incremental != (options is not None):
            yield where, "clusterUpgradeOptions belong to NewClusterWithIncrementalUpgrade, and to it alone"
        if incremental and not document["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield where, "an incremental upgrade needs enableInTreeAutoscaling"
        if incremental and options and not _is_gradual(options):
            yield (
                where,
                "stepSizePercent must be at most maxSurgePercent, that at most 100, intervalSeconds above 0",
            )
    for where, cluster in manifests.clusters():
        if "upgradeStrategy" in cluster and not where.startswith("RayCluster/"):
            yield where, "upgradeStrategy stands in the service's spec, not in its cluster's"


def in_place(manifests: Manifests) -> Found:
    """With strategy None a ConfigMap of another name has no effect, since it changes the pods' template."""
    for where, document in manifests.of("RayService"):
        if document["spec"].get("upgradeStrategy", {}).get("type") != "None":
            continue
        for pod in manifests.nodes(where):
            names = [v["configMap"]["name"] for v in pod.spec.get("volumes", ()) if "configMap" in v]
            if any(re.fullmatch(r".+-[bcdfghkmt2456789]{10}", name) for name in names):  # kustomize's hash
                yield pod.where, "upgradeStrategy None needs disableNameSuffixHash, else no change arrives"


def cleanup(manifests: Manifests) -> Found:
    """KubeRay empties Redis with a pod that has the head's labels, except for node type redis-cleanup."""
    for where, cluster in manifests.clusters():
        address = cluster.get("gcsFaultToleranceOptions", {}).get("redisAddress", "")
        if not address:
            continue
        port = address.rpartition(":")[2]
        for kind in ("head", "redis-cleanup"):
            labels = next(p.labels for p in manifests.nodes(where) if p.role == "head")
            labels = labels | {"ray.io/node-type": kind}
            if not any(str(p.get("port")) == port for p in _egress_ports(manifests, labels)):
                yield where, f"no NetworkPolicy lets its {kind} pod out to Redis (port {port})"


def _egress_ports(manifests: Manifests, labels: Json) -> list[Json]:
    return [
        port
        for _, policy in manifests.of("NetworkPolicy")
        if matches(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get("egress", ())
        for port in rule.get("ports", ())
    ]


def _is_gradual(options: Json) -> bool:
    step, surge = options.get("stepSizePercent", 0), options.get("maxSurgePercent", 100)
    return bool(0 < step <= surge <= 100 and options.get("intervalSeconds", 0) > 0)


def authentication(manifests: Manifests) -> Found:
    for where, cluster in manifests.clusters():
        options = cluster.get("authOptions", {})
        if options.get("mode") != "token":
            yield where, "authOptions.mode must be token: who reaches the dashboard runs code"
        if options.get("enableK8sTokenAuth") and not where.startswith("RayCluster/"):
            yield where, "enableK8sTokenAuth is refused for a RayJob and a RayService"


def fault_tolerance(manifests: Manifests) -> Found:
    for where, document in manifests.of("RayService", "RayCluster"):
        options = (document["spec"].get("rayClusterConfig") or document["spec"]).get(
            "gcsFaultToleranceOptions"
        )
        if options is None:
            continue
        for pod in manifests.pods(where):
            if clash := pod.environment.keys() & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
                yield pod.where, f"{', '.join(sorted(clash))} is set beside gcsFaultToleranceOptions"
        if "ray.io/ft-enabled" in document["metadata"].get("annotations", {}):
            yield where, "the annotation ray.io/ft-enabled is set beside gcsFaultToleranceOptions"
        if "externalStorageNamespace" in options:
            yield where, "a fixed externalStorageNamespace breaks upgrades: two clusters would share it"
        if "valueFrom" not in options.get("redisPassword", {}):
            yield where, "redisPassword must come from a Secret (valueFrom.secretKeyRef)"


def serve_port(manifests: Manifests) -> Found:
    for pod in manifests.pods():
        ports = [port.get("name", "") for port in pod.main.get("ports", ())]
        serves = any(name == "serve" or name.startswith("serve-") for name in ports)
        if pod.role == "head" and pod.where.startswith("RayService/") and ports and not serves:
            yield pod.where, "lists ports, but none called serve: the serve Service is not made"


def ray_container(manifests: Manifests) -> Found:
    for pod in manifests.pods():
        if pod.role in ("head", "worker") and pod.main["name"] != f"ray-{pod.role}":
            yield pod.where, f"KubeRay takes the first container for Ray's: it must be ray-{pod.role}"


def whole_cpus(manifests: Manifests) -> Found:
    """KubeRay reads CPUs from the limit, else the request, and rounds up; memory and GPUs from limits."""
    for pod in (pod for pod in manifests.pods() if pod.role == "worker"):
        cpus = _cpus(pod)
        if not str(cpus).isdigit() or int(cpus) < 1:
            yield (
                pod.where,
                f"a worker needs whole CPUs, not {cpus!r}: Ray rounds up, and places too much there",
            )


def _cpus(pod: Pod) -> Any:
    resources = pod.main.get("resources", {})
    return resources.get("limits", {}).get("cpu", resources.get("requests", {}).get("cpu", ""))
