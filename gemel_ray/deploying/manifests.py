"""What kustomize makes of a folder, and where in it pods and Ray clusters are.

Knows the shapes of Kubernetes' kinds, and nothing of what is right or wrong in them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gemel_ray.errors import Mistake

Json = dict[str, Any]
Found = Iterator[tuple[str, str]]  # where, and what is wrong there


@dataclass(frozen=True)
class Manifests:
    """One rendered folder. `around`: all that deploy/ holds beside it, to which it may refer."""

    folder: str
    documents: Sequence[Json]
    around: Sequence[Json] = ()

    def of(self, *kinds: str) -> Iterator[tuple[str, Json]]:
        """The documents of these kinds, each with its name for people."""
        for document in self.documents:
            if document["kind"] in kinds:
                yield called(document), document

    def pods(self, where: str | None = None) -> Iterator[Pod]:
        """All of them, or those of the document of this name."""
        for document in self.documents:
            if where in (None, called(document)):
                yield from _pods(document)

    def nodes(self, where: str) -> list[Pod]:
        """The pods that are nodes of the Ray cluster which the document of this name makes."""
        return [pod for pod in self.pods(where) if pod.role in ("head", "worker")]

    def clusters(self) -> Iterator[tuple[str, Json]]:
        """The specs of Ray clusters, with the name of what makes them."""
        for name, document in self.of("RayJob", "RayService", "RayCluster"):
            yield name, cluster(document)


@dataclass(frozen=True)
class Pod:
    """A pod, or what pods are made from. role: head, worker, submitter, or plain: not Ray's."""

    where: str
    role: str
    labels: Json
    spec: Json

    @property
    def main(self) -> Json:
        """The container that the pod is for: KubeRay takes the first for Ray's."""
        container: Json = self.spec["containers"][0]
        return container

    @property
    def containers(self) -> list[Json]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def environment(self) -> Json:
        return {entry["name"]: entry for entry in self.main.get("env", ())}


def rendered(deploy: Path, existing: Sequence[str] = ()) -> list[Manifests]:
    """Every kustomization under `deploy`, rendered, and around it what the cluster has already (KIND/NAME).
    ValueError where kustomize refuses one, or is missing."""
    if shutil.which("kubectl") is None:
        raise Mistake("kubectl is not installed, and renders the manifests; no cluster is needed")
    folders = sorted(
        file.parent
        for file in deploy.rglob("kustomization.yaml")
        if "base" not in file.relative_to(deploy).parts  # which overlays complete
        and yaml.safe_load(file.read_text()).get("kind") != "Component"  # which overlays take up
    )
    if not folders:
        raise Mistake(f"there is no kustomization.yaml under {deploy}")
    made = {folder: _kustomized(folder) for folder in folders}
    plain = [d for file in sorted(deploy.glob("*.yaml")) for d in yaml.safe_load_all(file.read_text())]
    around = [*plain, *(d for documents in made.values() for d in documents), *map(_existing, existing)]
    several = [Manifests(str(f.relative_to(deploy)), documents, around) for f, documents in made.items()]
    return [*several, Manifests(".", plain, around)]


def _kustomized(folder: Path) -> list[Json]:
    command = ["kubectl", "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode or made.stderr:
        raise Mistake(f"{folder} cannot be rendered: {made.stderr.strip()}")
    return [d for d in yaml.load_all(made.stdout, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if d]


def _existing(text: str) -> Json:
    kind, slash, name = text.partition("/")
    if not (kind and slash and name):
        raise Mistake(f"--existing {text}: say KIND/NAME, as PriorityClass/batch-low")
    return {"kind": kind, "metadata": {"name": name}, "spec": {}}


def called(document: Json) -> str:
    return f"{document['kind']}/{document['metadata'].get('name', '')}"


def cluster(document: Json) -> Json:
    """The RayCluster's spec in a RayJob, RayService or RayCluster."""
    field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    spec: Json = document["spec"]
    return spec[field] if field else spec


def serve_config(service: Json) -> Json:
    """What a RayService's serveConfigV2 says; {} where it is not YAML, which serve-options reports."""
    try:
        config = yaml.safe_load(service["spec"].get("serveConfigV2", ""))
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def groups(cluster: Json) -> list[Json]:
    """A Ray cluster's groups of workers."""
    found: list[Json] = cluster.get("workerGroupSpecs") or []
    return found


def _pods(document: Json) -> Iterator[Pod]:
    kind, name, spec = document["kind"], called(document), document.get("spec", {})
    if kind in ("RayJob", "RayService", "RayCluster"):
        ray = cluster(document)
        kinds = {"ray.io/is-ray-node": "yes"}
        yield _pod(
            f"{name} head", "head", ray["headGroupSpec"]["template"], kinds | {"ray.io/node-type": "head"}
        )
        for group in groups(ray):
            labels = kinds | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
            yield _pod(f"{name} {group['groupName']}", "worker", group["template"], labels)
        if "submitterPodTemplate" in spec:
            yield _pod(f"{name} submitter", "submitter", spec["submitterPodTemplate"], {})
    elif kind == "Pod":
        yield _pod(name, "plain", document, {})
    elif kind in ("StatefulSet", "Job"):
        yield _pod(name, "plain", spec["template"], {})
    elif kind == "CronJob":
        yield _pod(name, "plain", spec["jobTemplate"]["spec"]["template"], {})


def _pod(where: str, role: str, template: Json, given: Json) -> Pod:
    """`given`: the labels that KubeRay adds."""
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(where, role, labels | given, template["spec"])
