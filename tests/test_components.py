"""deploy/components: overlays as a platform team would write them are clean, and have what they ask for."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from files import HOUSE

from gemel_ray.deploying.lint import refused
from gemel_ray.deploying.manifests import Manifests, Pod, cluster, groups, rendered

OURS: dict[str, tuple[str, list[str]]] = {
    "job": ("gpu/offline", ["registry", "priority", "spot", "l4", "logs", "dns-node-local", "instance"]),
    "queued": ("gpu/offline", ["kueue", "h100", "logs"]),
    "queued-cpu": ("cpu/offline", ["kueue", "spot", "logs", "registry", "priority"]),
    "service": ("cpu/online", ["registry", "priority", "logs", "dns-openshift", "instance"]),
    "public": ("gpu/online", ["a100", "gateway", "logs", "priority"]),
    "large-job": ("gpu/offline", ["tensor-parallel-offline"]),
    "large-service": ("gpu/online", ["tensor-parallel-online", "h100"]),
}
DIGEST = f"sha256:{'0' * 64}"

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    """Every overlay of OURS, by its name, with an image by digest."""
    deploy = tmp_path_factory.mktemp("ours") / "deploy"
    shutil.copytree(HOUSE / "deploy", deploy)
    for name, (base, components) in OURS.items():
        build = base.partition("/")[0]
        image = {
            "name": "gemel-ray",
            "newName": "registry.example.com/ml/gemel-ray",
            "newTag": f"0.1.0-ray2.60.0-{build}",
            "digest": DIGEST,
        }
        overlay = {
            "resources": [f"../{base}"],
            "components": [f"../../components/{c}" for c in components],
            "images": [image],
        }
        (deploy / "overlays" / name).mkdir()
        (deploy / "overlays" / name / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    found = {m.folder.removeprefix("overlays/"): m for m in rendered(deploy)}
    return {name: found[name] for name in OURS}


def ray(manifests: Manifests) -> dict[str, Any]:
    (found,) = [d for d in manifests.documents if d["kind"] in ("RayJob", "RayService")]
    return found


def pods(manifests: Manifests, *roles: str) -> list[Pod]:
    return [pod for pod in manifests.pods() if pod.role in roles]


def test_every_component_is_used_here_and_described() -> None:
    there = {file.parent.name for file in (HOUSE / "deploy" / "components").glob("*/kustomization.yaml")}
    assert there == {name for _, names in OURS.values() for name in names}
    text = (HOUSE / "deploy" / "README.md").read_text()
    assert [name for name in there if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", OURS)
def test_each_rendering_of_the_manifests_passes_the_lint(ours: dict[str, Manifests], name: str) -> None:
    assert list(map(str, refused(ours[name]))) == []


@pytest.mark.parametrize("name", ["queued", "queued-cpu"])
def test_a_queued_job_has_its_full_size_and_no_autoscaler(ours: dict[str, Manifests], name: str) -> None:
    spec = cluster(ray(ours[name]))
    assert ray(ours[name])["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gemel-ray"
    assert not spec["enableInTreeAutoscaling"]
    assert "autoscalerOptions" not in spec
    sizes = [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in groups(spec)]
    assert sizes == ([(1, 1, 1), (2, 2, 2)] if name == "queued" else [(4, 4, 4)])


@pytest.mark.parametrize("name", ["job", "queued-cpu"])
def test_only_workers_go_to_spot_nodes(ours: dict[str, Manifests], name: str) -> None:
    (head,) = pods(ours[name], "head")
    *rest, last = pods(ours[name], "worker")
    taints = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    assert taints <= {t["key"] for t in last.spec["tolerations"]}
    assert last.spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    for pod in (head, *rest):
        assert "tolerations" not in pod.spec
    assert "requiredDuringSchedulingIgnoredDuringExecution" in head.spec["affinity"]["nodeAffinity"]


def test_a_size_and_spot_stand_beside_each_other(ours: dict[str, Manifests]) -> None:
    pod = pods(ours["job"], "worker")[-1]
    affinity = pod.spec["affinity"]["nodeAffinity"]
    first = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
    assert first["matchExpressions"][0]["values"] == ["NVIDIA-L4"]
    assert len(affinity["preferredDuringSchedulingIgnoredDuringExecution"]) == 4
    assert pod.main["resources"]["limits"]["memory"] == "36Gi"


@pytest.mark.parametrize("name", ["job", "queued-cpu", "service"])
def test_every_pod_has_key_class_and_digest(ours: dict[str, Manifests], name: str) -> None:
    found = pods(ours[name], "head", "worker", "submitter")
    assert {pod.main["image"].partition("@")[2] for pod in found} == {DIGEST}
    assert {s["name"] for pod in found for s in pod.spec["imagePullSecrets"]} == {"gemel-ray-registry"}
    classes = yaml.safe_load_all((HOUSE / "deploy" / "priority_classes.yaml").read_text())
    assert {pod.spec["priorityClassName"] for pod in found} < {c["metadata"]["name"] for c in classes}


def test_another_instance_counts_only_its_own_pods(ours: dict[str, Manifests]) -> None:
    names = {d["metadata"]["name"] for d in ours["service"].documents}
    assert {name for name in names if not name.startswith("b-")} == set()
    found = pods(ours["service"], "head", "worker")
    assert {pod.labels["app.kubernetes.io/instance"] for pod in found} == {"b"}
    budget = next(d for d in ours["service"].documents if d["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "b"
    claims = {v["persistentVolumeClaim"]["claimName"] for pod in found for v in pod.spec["volumes"][:1]}
    assert claims == {"gemel-ray"}  # whose files both share


@pytest.mark.parametrize(("name", "gpus"), [("large-job", "2"), ("large-service", "2")])
def test_a_large_model_has_the_gpus_of_one_pod(ours: dict[str, Manifests], name: str, gpus: str) -> None:
    config = next(d for d in ours[name].documents if d["kind"] == "ConfigMap")
    (text,) = config["data"].values()
    assert yaml.safe_load(text)["generate"]["tensor_parallel"] == int(gpus)
    assert pods(ours[name], "worker")[-1].main["resources"]["limits"]["nvidia.com/gpu"] == gpus
    used = {
        v["configMap"]["name"]
        for p in pods(ours[name], "head")
        for v in p.spec["volumes"]
        if "configMap" in v
    }
    assert used == {config["metadata"]["name"]}


def test_a_log_is_kept_to_the_last_line(ours: dict[str, Manifests], tmp_path: Path) -> None:
    """The sidecar's own shell, with folders of ours in place of the pod's."""
    for name in ("job", "service", "public"):
        for pod in pods(ours[name], "head", "worker"):
            (keeper,) = pod.spec["initContainers"]
            assert keeper["image"] == pod.main["image"]
    (script,) = keeper["args"]
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "job-driver-x.log").write_text("first\n")
    script = script.replace("/tmp/ray", str(tmp_path / "ray")).replace("/data/logs", str(tmp_path / "kept"))
    kept = tmp_path / "kept" / "pod-1" / "job-driver-x.log"
    keeper = subprocess.Popen(["sh", "-c", script], env={"POD": "pod-1", "PATH": "/usr/bin:/bin"})
    while not kept.exists():
        assert keeper.poll() is None
        time.sleep(0.05)
    (logs / "job-driver-x.log").write_text("first\nlast\n")
    keeper.terminate()
    assert keeper.wait(timeout=100) == 0
    assert kept.read_text() == "first\nlast\n"
