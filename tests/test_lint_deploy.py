"""Every rule of lint-deploy refuses a manifest that is broken in one place, and by its name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from files import HOUSE

from gemel_ray.cli import main
from gemel_ray.config import Config
from gemel_ray.deploying.lint import RULES
from gemel_ray.deploying.manifests import Manifests, rendered
from gemel_ray.deploying.metrics import names
from gemel_ray.deploying.placement import fits

JOB, CPU_JOB, SERVICE = "overlays/gpu/offline", "overlays/cpu/offline", "overlays/gpu/online"
CPU_SERVICE = "overlays/cpu/online"
GRADUAL, QDRANT, REDIS, MONITORING = "overlays/gpu/online-incremental", "qdrant", "redis", "monitoring"
Edit = Callable[[list[dict[str, Any]]], None]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests")
needs_online = pytest.mark.skipif(
    not hasattr(Config(), "online") or find_spec("gemel_ray.online") is None,
    reason="there is no endpoint yet",
)


@cache
def clean() -> dict[str, Manifests]:
    return {manifests.folder: manifests for manifests in rendered(HOUSE / "deploy")}


def place(documents: list[dict[str, Any]], kind: str, path: str) -> tuple[Any, Any]:
    """What holds the last step of a path (a.0.b) in the first document of a kind, and that step."""
    found: Any = next(d for d in documents if d["kind"] == kind)
    *steps, last = [int(s) if s.isdigit() else s.replace("~", "/") for s in path.split("/")]
    for step in steps:
        found = found[step] if isinstance(found, list) else found.setdefault(step, {})
    return found, last


def put(kind: str, path: str, value: Any) -> Edit:
    """Set one value; at the end of a list, add it."""

    def edit(documents: list[dict[str, Any]]) -> None:
        holder, step = place(documents, kind, path)
        if isinstance(holder, list) and step == len(holder):
            holder.append(value)
        else:
            holder[step] = value

    return edit


def cut(kind: str, path: str) -> Edit:
    def edit(documents: list[dict[str, Any]]) -> None:
        holder, step = place(documents, kind, path)
        del holder[step]

    return edit


def swap(kind: str, path: str, old: str, new: str) -> Edit:
    """Change a text in one place."""

    def edit(documents: list[dict[str, Any]]) -> None:
        holder, step = place(documents, kind, path)
        assert old in holder[step]
        holder[step] = holder[step].replace(old, new)

    return edit


def drop(kind: str) -> Edit:
    def edit(documents: list[dict[str, Any]]) -> None:
        documents[:] = [d for d in documents if d["kind"] != kind]

    return edit


J, S = "spec/rayClusterSpec", "spec/rayClusterConfig"
JHEAD, SHEAD = f"{J}/headGroupSpec", f"{S}/headGroupSpec"
JPOD, SPOD = f"{JHEAD}/template/spec", f"{SHEAD}/template/spec"
JWORK, SWORK = f"{J}/workerGroupSpecs", f"{S}/workerGroupSpecs"
GPU = f"{JWORK}/1/template/spec/containers/0"
CONFIG, SETTINGS = "spec/serveConfigV2", "data/job_config.yaml"
IMAGE = "spec/template/spec/containers/0/image"
PROBE = "spec/template/spec/containers/0/readinessProbe"


def only_head_to_redis(documents: list[dict[str, Any]]) -> None:
    """As the policies were when each upgrade waited 5 minutes for KubeRay's cleanup pod."""
    policy = next(d for d in documents if d["metadata"]["name"] == "gemel-ray-online-state")
    policy["spec"]["podSelector"]["matchExpressions"][0]["values"] = ["head"]


def route_to(service: str) -> Edit:
    def edit(documents: list[dict[str, Any]]) -> None:
        spec = {"rules": [{"backendRefs": [{"name": service}]}]}
        documents.append({"kind": "HTTPRoute", "metadata": {"name": "a"}, "spec": spec})

    return edit


CASES: list[tuple[str, str, Edit, str]] = [
    ("schema", JOB, put("RayJob", "spec/retries", 3), "unknown field retries"),
    ("schema", JOB, put("RayJob", f"{JWORK}/0/replica", 2), "unknown field replica"),
    ("schema", JOB, put("RayJob", f"{JPOD}/containers/0/img", "x"), "unknown field img"),
    ("schema", JOB, put("RayJob", f"{JHEAD}/rayStartParams/num-cpus", 0), "not of type 'string'"),
    ("schema", JOB, put("RayJob", f"{GPU}/resources/limits/memory", "much"), "does not match"),
    ("schema", JOB, cut("RayJob", f"{JWORK}/0/groupName"), "'groupName' is a required property"),
    ("schema", JOB, put("RayJob", f"{GPU}/env/8", {"name": "HOME"}), "two items have the same name"),
    ("schema", JOB, put("RayJob", "spec/backoffLimit", 2**31), "int32"),
    ("schema", JOB, put("RayJob", "apiVersion", "ray.io/v1alpha1"), "no kind ray.io/v1alpha1 RayJob"),
    ("schema", QDRANT, put("StatefulSet", "spec/replica", 1), "unknown field replica"),
    ("schema", QDRANT, put("StatefulSet", "spec/template/spec/volume", []), "unknown field volume"),
    ("schema", QDRANT, put("CronJob", "spec/concurrency", "Forbid"), "unknown field concurrency"),
    ("schema", QDRANT, put("NetworkPolicy", "spec/policyTypes", ["In"]), "is not one of"),
    ("schema", QDRANT, put("PodDisruptionBudget", "spec/minimum", 1), "unknown field minimum"),
    ("schema", MONITORING, put("PodMonitor", "spec/podMetricsEndpoints/0/prot", "x"), "unknown field prot"),
    ("name", JOB, put("RayJob", "metadata/name", "a" * 48), "at most 47"),
    ("name", JOB, put("RayJob", "metadata/name", "2nd"), "DNS label"),
    ("name", SERVICE, put("RayService", f"{SHEAD}/headService/metadata", {"name": "x"}), "headService"),
    ("start-parameters", JOB, cut("RayJob", f"{JHEAD}/rayStartParams/num-cpus"), "num-cpus"),
    ("start-parameters", JOB, put("RayJob", f"{JWORK}/0/rayStartParams/labels", "a=b"), "labels"),
    ("ray-container", JOB, put("RayJob", f"{GPU}/name", "sidecar"), "first container"),
    ("whole-cpus", JOB, put("RayJob", f"{GPU}/resources/limits/cpu", "3500m"), "whole CPUs"),
    ("job-end", JOB, cut("RayJob", "spec/shutdownAfterJobFinishes"), "stays when the job is done"),
    ("job-end", JOB, put("RayJob", "spec/deletionStrategy", {"deletionRules": []}), "excludes"),
    ("job-end", JOB, put("RayJob", "spec/preRunningDeadlineSeconds", 0), "above 0"),
    (
        "job-end",
        JOB,
        put("RayJob", "spec/deletionStrategy/deletionRules", [{"policy": "DeleteWorkers"}]),
        "DeleteWorkers is refused",
    ),
    ("job-retry", JOB, put("RayJob", "spec/backoffLimit", 0), "backoffLimit"),
    ("job-retry", JOB, put("RayJob", "spec/activeDeadlineSeconds", 60), "activeDeadlineSeconds"),
    ("job-retry", JOB, cut("RayJob", f"{JPOD}/containers/0/env/8"), "a wrong path is retried"),
    ("job-retry", JOB, put("RayJob", f"{J}/gcsFaultToleranceOptions", {}), "for services"),
    ("entrypoint", JOB, swap("RayJob", "spec/entrypoint", "--output", "&& --output"), "one plain command"),
    ("submission", JOB, put("RayJob", "spec/submissionMode", "SidecarMode"), "refuses submitterPodTemplate"),
    ("submission", JOB, put("RayJob", "spec/submissionMode", "K8s"), "no submissionMode K8s"),
    ("submission", JOB, put("RayJob", "spec/entrypointNumCpus", 1), "the head has none"),
    ("queue", JOB, put("RayJob", "metadata/labels/kueue.x-k8s.io~queue-name", "a"), "groups of fixed size"),
    ("route", QDRANT, route_to("gemel-ray-serve"), "no Service gemel-ray-serve;"),
    ("upgrade", SERVICE, put("RayService", "spec/upgradeStrategy/type", "BlueGreen"), "must be one of"),
    ("upgrade", GRADUAL, cut("RayService", "spec/upgradeStrategy/clusterUpgradeOptions"), "belong"),
    ("upgrade", GRADUAL, cut("RayService", f"{S}/enableInTreeAutoscaling"), "enableInTreeAutoscaling"),
    (
        "upgrade",
        GRADUAL,
        put("RayService", "spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", 60),
        "at most maxSurgePercent",
    ),
    (
        "upgrade",
        SERVICE,
        put("RayService", f"{S}/upgradeStrategy", {"type": "Recreate"}),
        "not in its",
    ),
    ("serve-port", SERVICE, put("RayService", f"{SPOD}/containers/0/ports/3/name", "web"), "called serve"),
    ("authentication", JOB, cut("RayJob", f"{J}/authOptions"), "mode must be token"),
    ("authentication", JOB, put("RayJob", f"{J}/authOptions/enableK8sTokenAuth", True), "refused"),
    (
        "fault-tolerance",
        SERVICE,
        put("RayService", f"{S}/gcsFaultToleranceOptions/externalStorageNamespace", "x"),
        "breaks upgrades",
    ),
    (
        "fault-tolerance",
        SERVICE,
        put("RayService", f"{S}/gcsFaultToleranceOptions/redisPassword", {"value": "x"}),
        "must come from a Secret",
    ),
    (
        "fault-tolerance",
        SERVICE,
        put("RayService", f"{SPOD}/containers/0/env/0/name", "RAY_REDIS_ADDRESS"),
        "RAY_REDIS_ADDRESS",
    ),
    ("group-size", JOB, put("RayJob", f"{JWORK}/1/minReplicas", 3), "at most maxReplicas"),
    ("group-size", JOB, put("RayJob", f"{JWORK}/1/replicas", 1), "autoscaler's to write"),
    ("group-size", JOB, put("RayJob", f"{J}/enableInTreeAutoscaling", False), "must be equal"),
    ("autoscaler-version", JOB, cut("RayJob", f"{J}/autoscalerOptions/version"), "must be v2"),
    ("autoscaler-version", JOB, put("RayJob", f"{JPOD}/restartPolicy", "Always"), "restartPolicy"),
    ("autoscaler-version", JOB, cut("RayJob", f"{J}/enableInTreeAutoscaling"), "do nothing"),
    ("idle-timeout", JOB, cut("RayJob", f"{J}/enableInTreeAutoscaling"), "needs the autoscaler"),
    ("autoscaler-sidecar", JOB, cut("RayJob", f"{J}/autoscalerOptions/securityContext"), "as Ray"),
    ("autoscaler-sidecar", JOB, cut("RayJob", f"{J}/autoscalerOptions/volumeMounts/0"), "/tmp"),
    ("autoscaler-sidecar", JOB, cut("RayJob", f"{J}/autoscalerOptions/volumeMounts/1"), "no token"),
    ("non-root", JOB, cut("RayJob", f"{JPOD}/securityContext/runAsNonRoot"), "runAsNonRoot"),
    ("non-root", JOB, cut("RayJob", f"{JPOD}/securityContext/seccompProfile"), "seccompProfile"),
    ("non-root", JOB, cut("RayJob", f"{GPU}/securityContext/capabilities"), "drop ALL"),
    ("non-root", REDIS, put("StatefulSet", "spec/template/spec/securityContext/runAsUser", 0), "runAsUser"),
    ("read-only-root", JOB, cut("RayJob", f"{GPU}/securityContext/readOnlyRootFilesystem"), "readOnlyRoot"),
    ("read-only-root", JOB, put("RayJob", f"{GPU}/env/0/value", "/home/gemel"), "HOME (/home/gemel)"),
    ("read-only-root", JOB, put("RayJob", f"{GPU}/volumeMounts/1/mountPath", "/tmp/ray"), "/tmp must be"),
    ("resources", JOB, cut("RayJob", f"{GPU}/resources/limits/memory"), "limit memory"),
    ("resources", JOB, put("RayJob", f"{GPU}/resources/limits/memory", "64Gi"), "must be equal"),
    ("scratch-limit", JOB, put("RayJob", f"{JPOD}/volumes/1/emptyDir", {}), "sizeLimit"),
    (
        "api-token",
        QDRANT,
        cut("StatefulSet", "spec/template/spec/automountServiceAccountToken"),
        "API server",
    ),
    ("mounts", JOB, cut("RayJob", f"{JPOD}/volumes/0"), "no volume data"),
    ("mounts", JOB, cut("RayJob", f"{GPU}/volumeMounts/0"), "mounted nowhere"),
    ("reference", JOB, put("RayJob", f"{JPOD}/volumes/2/configMap/name", "config"), "no ConfigMap config"),
    ("reference", JOB, put("RayJob", f"{GPU}/env/7/valueFrom/secretKeyRef/key", "k"), "has no key k"),
    (
        "reference",
        SERVICE,
        put("RayService", f"{S}/gcsFaultToleranceOptions/redisPassword/valueFrom/secretKeyRef/name", "r"),
        "no Secret r",
    ),
    ("selector", QDRANT, put("Service", "spec/selector", {"app": "qdrant"}), "selects no pod"),
    ("selector", QDRANT, put("StatefulSet", "spec/selector/matchLabels", {"a": "b"}), "its own pods"),
    ("selector", MONITORING, put("PodMonitor", "spec/selector/matchLabels", {"a": "b"}), "selects no pod"),
    (
        "selector",
        QDRANT,
        put("NetworkPolicy", "spec/ingress/0/from/0/podSelector/matchExpressions/0/values", ["on"]),
        "selects no pod",
    ),
    ("port", QDRANT, put("Service", "spec/ports/0/targetPort", "web"), "port web"),
    ("port", MONITORING, put("PodMonitor", "spec/podMetricsEndpoints/0/port", "metric"), "port metric"),
    (
        "disruption-budget",
        CPU_SERVICE,
        put("PodDisruptionBudget", "spec", {"maxUnavailable": 1, "selector": {}}),
        "minAvailable",
    ),
    (
        "disruption-budget",
        CPU_SERVICE,
        put("PodDisruptionBudget", "spec/minAvailable", "50%"),
        "minAvailable",
    ),
    (
        "shared-claim",
        JOB,
        put("RayJob", f"{JPOD}/volumes/0/persistentVolumeClaim/claimName", "x"),
        "ReadWriteMany",
    ),
    ("network-policy", JOB, drop("NetworkPolicy"), "bounds its Ingress"),
    (
        "serve-options",
        SERVICE,
        swap("RayService", CONFIG, "route_prefix", "route"),
        "option route",
    ),
    (
        "serve-options",
        SERVICE,
        swap("RayService", CONFIG, "encoding: JSON", "encodings: JSON"),
        "encodings",
    ),
    (
        "serve-options",
        SERVICE,
        swap("RayService", CONFIG, "EveryNode", "AllNodes"),
        "proxy_loc",
    ),
    (
        "serve-options",
        SERVICE,
        swap(
            "RayService",
            CONFIG,
            "{num_cpus: 0.1}",
            "{num_cpus: 0.1}, autoscaling_config: {max_replica: 2}",
        ),
        "max_replica",
    ),
    (
        "import-path",
        SERVICE,
        swap("RayService", CONFIG, "gemel_ray.online:app", "gemel_ray.offline:app"),
        "gemel_ray.offline:app is not a function",
    ),
    ("serve-arguments", SERVICE, swap("RayService", CONFIG, "workspace:", "space:"), "space"),
    ("serve-arguments", SERVICE, swap("RayService", CONFIG, "name: api", "name: encode"), "online.segments"),
    ("command", JOB, swap("RayJob", "spec/entrypoint", "--output", "--out"), "refused"),
    ("command", JOB, swap("RayJob", "spec/entrypoint", "gemel-ray", "python"), "must start with gemel-ray"),
    ("command", JOB, swap("RayJob", "spec/entrypoint", "/data/linked", "/linked"), "on no claim"),
    ("command", SERVICE, swap("RayService", CONFIG, "/data/workspace", "/workspace"), "on no claim"),
    ("configuration", JOB, swap("RayJob", "spec/entrypoint", "job_config", "config"), "no ConfigMap's file"),
    (
        "configuration",
        JOB,
        swap("ConfigMap", SETTINGS, "stall_minutes", "stall_minuets"),
        "did you mean offline.stall_minutes",
    ),
    (
        "configuration",
        JOB,
        swap("ConfigMap", SETTINGS, "address: auto", "address: local"),
        "auto",
    ),
    ("configuration", JOB, swap("ConfigMap", SETTINGS, "threads: 2", "threads: 0"), "threads"),
    ("gpu-count", JOB, put("RayJob", f"{JWORK}/1/maxReplicas", 3), "3 GPUs at most"),
    ("room", CPU_JOB, put("RayJob", f"{JWORK}/0/maxReplicas", 3), "finds no room"),
    ("room", JOB, swap("ConfigMap", SETTINGS, "cpus: 5.0", "cpus: 4.0"), "finds no room"),
    ("drain", SERVICE, cut("RayService", f"{SWORK}/0/template/spec/containers/0/lifecycle"), "preStop"),
    ("drain", SERVICE, put("RayService", "spec/rayClusterDeletionDelaySeconds", 10), "online.deadline"),
    (
        "image-version",
        REDIS,
        put("StatefulSet", IMAGE, "redis"),
        "a version",
    ),
    ("ray-version", JOB, put("RayJob", f"{J}/rayVersion", "2.59.0"), "rayVersion"),
    ("ray-version", JOB, put("RayJob", f"{GPU}/image", "gemel-ray:0.1.0-ray2.60.0-cpu"), "-gpu"),
    (
        "qdrant-version",
        QDRANT,
        put("StatefulSet", IMAGE, "qdrant/qdrant:v1.17.0"),
        "minor version",
    ),
    (
        "metric",
        MONITORING,
        put("PrometheusRule", "spec/groups/0/rules/0/expr", "ray_serve_errors > 1"),
        "ray_serve_errors",
    ),
    ("label", JOB, put("RayJob", "metadata/labels/bad key", "x"), "label key 'bad key'"),
    (
        "label",
        JOB,
        put("RayJob", f"{JWORK}/0/template/metadata/labels/team", "data science"),
        "'data science'",
    ),
    (
        "scheduling",
        JOB,
        put("RayJob", f"{JWORK}/1/template/spec/tolerations/0/operator", "Exist"),
        "not Exist",
    ),
    (
        "scheduling",
        SERVICE,
        put(
            "RayService",
            f"{SWORK}/0/template/spec/topologySpreadConstraints/0/whenUnsatisfiable",
            "ScheduleAnyways",
        ),
        "not ScheduleAnyways",
    ),
    ("handler", QDRANT, put("StatefulSet", f"{PROBE}/tcpSocket", {"port": 6333}), "httpGet and tcpSocket"),
    (
        "handler",
        SERVICE,
        put("RayService", f"{SWORK}/0/template/spec/containers/0/lifecycle/preStop", {}),
        "not none",
    ),
    ("port-value", JOB, put("RayJob", f"{GPU}/ports/0/name", "metrics-of-the-worker"), "at most 15"),
    ("port-value", QDRANT, put("Service", "spec/ports/0/name", "HTTP_1"), "'HTTP_1'"),
    ("port-value", QDRANT, put("Service", "spec/clusterIP", "none"), "clusterIP must be None"),
    (
        "network-value",
        JOB,
        put("NetworkPolicy", "spec/egress/3/to/0/ipBlock/cidr", "0.0.0.0/33"),
        "0.0.0.0/33",
    ),
    (
        "network-value",
        JOB,
        put("NetworkPolicy", "spec/egress/3/to/0/ipBlock", {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}),
        "11.0.0.0/8 is outside",
    ),
    ("network-value", JOB, put("NetworkPolicy", "spec/egress/3/ports/0/port", 99999), "99999"),
    ("object-value", CPU_SERVICE, put("PodDisruptionBudget", "spec/maxUnavailable", 1), "exclude each other"),
    ("object-value", QDRANT, put("CronJob", "spec/schedule", "61 3 * * *"), "61 3 * * *"),
    (
        "object-value",
        QDRANT,
        put("CronJob", "spec/jobTemplate/spec/template/spec/restartPolicy", "Always"),
        "not Always",
    ),
    (
        "object-value",
        QDRANT,
        put("StatefulSet", "spec/volumeClaimTemplates/0/spec/accessModes", ["ReadWriteOnly"]),
        "not ReadWriteOnly",
    ),
    ("group-name", JOB, put("RayJob", f"{JWORK}/0/groupName", "cpu pool"), "'cpu pool'"),
    ("group-name", JOB, put("RayJob", f"{JWORK}/0/groupName", "gpu"), "two groups are called gpu"),
    ("group-size", JOB, put("RayJob", f"{JWORK}/0/minReplicas", -1), "below 0"),
    ("job-end", JOB, put("RayJob", "spec/ttlSecondsAfterFinished", -1), "below 0"),
    (
        "start-flags",
        JOB,
        put("RayJob", f"{JWORK}/0/rayStartParams/objct-store-memory", "1"),
        "did you mean object-store-memory",
    ),
    ("memory", JOB, put("RayJob", f"{GPU}/resources/limits/memory", "600Mi"), "at least 3 GiB"),
    (
        "memory",
        JOB,
        put("RayJob", f"{JWORK}/0/rayStartParams/object-store-memory", "20000000000"),
        "below the memory limit",
    ),
    ("resources", JOB, cut("RayJob", f"{GPU}/resources/limits/cpu"), "limit memory and CPUs"),
    ("resources", JOB, cut("RayJob", f"{J}/autoscalerOptions/resources/limits/cpu"), "autoscalerOptions"),
    ("reference", JOB, put("RayJob", f"{JPOD}/priorityClassName", "batch-low"), "no PriorityClass batch-low"),
    ("reference", JOB, put("RayJob", f"{JPOD}/imagePullSecrets", [{"name": "r"}]), "no Secret r"),
    (
        "redis-address",
        SERVICE,
        put("RayService", f"{S}/gcsFaultToleranceOptions/redisAddress", "gemel-ray-rediss:6379"),
        "no Service gemel-ray-rediss",
    ),
    (
        "redis-address",
        SERVICE,
        put("RayService", f"{S}/gcsFaultToleranceOptions/redisAddress", "gemel-ray-redis:6378"),
        "no port 6378",
    ),
    ("redis-cleanup", SERVICE, only_head_to_redis, "its redis-cleanup pod out to Redis"),
    (
        "http-port",
        SERVICE,
        swap("RayService", CONFIG, "port: 8000", "port: 8001"),
        "http_options.port is 8001",
    ),
    ("serve-options", SERVICE, put("RayService", CONFIG, "applications: ["), "is not YAML"),
    (
        "in-place",
        "overlays/laptop/online",
        put("RayService", f"{SPOD}/volumes/2/configMap/name", "gemel-ray-service-bcdfghkmt2"),
        "disableNameSuffixHash",
    ),
    (
        "disruption-budget",
        CPU_SERVICE,
        put("PodDisruptionBudget", "spec/minAvailable", 2),
        "no drain of a node ends",
    ),
    (
        "surge",
        CPU_SERVICE,
        swap("ConfigMap", "data/service_config.yaml", "max_replicas: 4", "max_replicas: 4\n      surge: 1.0"),
        "leaves no room",
    ),
    (
        "promql",
        MONITORING,
        put("PrometheusRule", "spec/groups/0/rules/0/expr", "sum(rate("),
        "not PromQL",
    ),
]
LATER = {"drain", "metric"}  # need the endpoint's configuration and meters


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, *_ in CASES} == set(RULES)


@needs_kubectl
@pytest.mark.parametrize(
    ("rule", "folder", "edit", "words"),
    [
        pytest.param(*case, id=f"{case[0]}-{number}", marks=[needs_online] if case[0] in LATER else [])
        for number, case in enumerate(CASES)
    ],
)
def test_a_broken_manifest_is_refused(rule: str, folder: str, edit: Edit, words: str) -> None:
    before = clean()[folder]
    if rule != "import-path":  # without an endpoint there is none
        assert list(RULES[rule](before)) == []
    documents = copy.deepcopy(list(before.documents))
    edit(documents)
    found = list(RULES[rule](Manifests(folder, documents, before.around)))
    assert any(words in what for _, what in found), found


@needs_kubectl
def test_only_the_broken_place_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, over a folder of somebody's own."""
    for name in ("redis", "secrets.yaml"):
        source, target = HOUSE / "deploy" / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    assert main(["lint-deploy", str(tmp_path)]) in (0, 1)
    before = capsys.readouterr().out.splitlines()
    file = tmp_path / "redis" / "redis.yaml"
    file.write_text(file.read_text().replace("redis:7.4.6", "redis:latest"))
    assert main(["lint-deploy", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["rule"] for f in found if f["rule"] == "image-version"] == ["image-version"]
    assert len(found) == len(before) - ("nothing found" in before[0]) + 1


@needs_kubectl
def test_images_for_production_must_be_named_by_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which kustomize puts in the tag's place: no rule asks for a tag then."""
    shutil.copytree(HOUSE / "deploy", tmp_path / "deploy")
    shutil.rmtree(tmp_path / "deploy" / "overlays" / "laptop")
    ours = tmp_path / "deploy" / "overlays" / "ours"
    ours.mkdir()
    digest = "sha256:" + "0123456789abcdef" * 4
    image = f"{{name: gemel-ray, newName: registry.example.com/gemel-ray, digest: '{digest}'}}"
    (ours / "kustomization.yaml").write_text(f"resources: [../gpu/online]\nimages: [{image}]\n")

    def found(*options: str) -> set[tuple[str, str]]:
        main(["lint-deploy", str(tmp_path / "deploy"), "--json", *options])
        return {(f["rule"], f["folder"]) for f in json.loads(capsys.readouterr().out)}

    assert {folder for _, folder in found()} & {"overlays/ours"} == set()
    strictly = found("--digests")
    assert {("image-digest", "overlays/gpu/online"), ("image-digest", "redis")} <= strictly
    assert ("image-digest", "overlays/ours") not in strictly


@needs_kubectl
def test_what_the_cluster_has_needs_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(HOUSE / "deploy" / "redis", tmp_path / "redis")
    shutil.copy(HOUSE / "deploy" / "secrets.yaml", tmp_path)
    file = tmp_path / "redis" / "redis.yaml"
    text = file.read_text().replace(
        "    spec:\n      auto", "    spec:\n      priorityClassName: low\n      auto"
    )
    file.write_text(text)
    main(["lint-deploy", str(tmp_path)])
    assert "no PriorityClass low; --existing PriorityClass/low" in capsys.readouterr().out
    main(["lint-deploy", str(tmp_path), "--existing", "PriorityClass/low"])
    assert "PriorityClass" not in capsys.readouterr().out
    assert main(["lint-deploy", str(tmp_path), "--existing", "low"]) == 2
    assert "KIND/NAME" in capsys.readouterr().err


@needs_kubectl
def test_what_cannot_be_rendered_is_one_plain_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint-deploy", str(tmp_path)]) == 2
    assert "no kustomization.yaml" in capsys.readouterr().err
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nresources: [absent.yaml]\n")
    assert main(["lint-deploy", str(tmp_path)]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_a_bad_placement_is_found() -> None:
    class Segment:
        def __init__(self, cpus: float, gpus: float) -> None:
            self.cpus, self.gpus = cpus, gpus

    two = ((8.0, 1.0), (8.0, 1.0))
    engine, encoder = Segment(2.0, 0.8), Segment(1.0, 0.2)
    assert not fits(two, [(encoder, 2), (engine, 2)], 1.5)  # both encoders on one GPU, no engine there
    assert fits(two, [(Segment(5.0, 0.2), 2), (engine, 2)], 1.5)
    assert not fits(two, [(engine, 3)], 1.5)
    assert not fits(((4.0, 0.0),), [(Segment(4.0, 0.0), 1)], 1.5)  # nothing left to read with
    assert fits(((4.0, 0.0),), [(Segment(4.0, 0.0), 1)], 0.0)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('sum by (a, b) (rate(x_total{c="d"}[5m])) / on (e) group_left (f) y > 0.5', {"x_total", "y"}),
        ("histogram_quantile(0.95, sum(rate(z_bucket[1m])) by (le)) or up == 1", {"z_bucket", "up"}),
        ('m{a=~"b|c", d!="e{f}"} unless on (g) n', {"m", "n"}),
    ],
)
def test_the_metrics_of_an_expression_are_found(expression: str, found: set[str]) -> None:
    assert names(expression) == found
