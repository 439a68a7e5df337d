"""Renders folders with kustomize, and finds pods and Ray clusters in the result.

Knows the structure of Kubernetes' kinds, but not what is right or wrong in them.
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
Found = Iterator[tuple[str, str]]  # a place, and what is wrong there


@dataclass(frozen=True)
class Manifests:
    """One rendered folder. `around`: the rest of deploy/, to which it may refer."""

    folder: str
    documents: Sequence[Json]
    around: Sequence[Json] = ()

    def of(self, *kinds: str) -> Iterator[tuple[str, Json]]:
        """The documents of these kinds, each with its name for people."""
        for document in self.documents:
            if document["kind"] in kinds:
                yield kind_and_name(document), document

    def pods(self, where: str | None = None) -> Iterator[Pod]:
        """All pods, or those of the document of this name."""
        for document in self.documents:
            if where in (None, kind_and_name(document)):
                yield from _pods(document)

    def nodes(self, where: str) -> list[Pod]:
        """The pods that are nodes of this document's Ray cluster."""
        return [pod for pod in self.pods(where) if pod.role in ("head", "worker")]

    def clusters(self) -> Iterator[tuple[str, Json]]:
        """The specs of Ray clusters, with the names of their documents."""
        for name, document in self.of("RayJob", "RayService", "RayCluster"):
            yield name, cluster(document)


@dataclass(frozen=True)
class Pod:
    """A pod or a pod template. role: head, worker, submitter, or plain: not Ray's."""

    where: str
    role: str
    labels: Json
    spec: Json

    @property
    def main(self) -> Json:
        """The main container: KubeRay takes the first for Ray's."""
        container: Json = self.spec["containers"][0]
        return container

    @property
    def containers(self) -> list[Json]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def environment(self) -> Json:
        return {entry["name"]: entry for entry in self.main.get("env", ())}


def rendered(deploy: Path, existing: Sequence[str] = ()) -> list[Manifests]:
    """Every kustomization under `deploy`, rendered; `existing`: objects that the cluster already has
    (KIND/NAME). ValueError where kustomize refuses one, or is missing."""
    if shutil.which("kubectl") is None:
        raise Mistake("kubectl is not installed, and renders the manifests; no cluster is needed")
    folders = sorted(
        file.parent
        for file in deploy.rglob("kustomization.yaml")
        if "base" not in file.relative_to(deploy).parts  # overlays complete these
        and yaml.safe_load(file.read_text()).get("kind") != "Component"  # overlays include these
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


def kind_and_name(document: Json) -> str:
    return f"{document['kind']}/{document['metadata'].get('name', '')}"


def cluster(document: Json) -> Json:
    """The RayCluster's spec in a RayJob, RayService or RayCluster."""
    field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    spec: Json = document["spec"]
    return spec[field] if field else spec


def serve_config(service: Json) -> Json:
    """A RayService's serveConfigV2; {} where it is not YAML, which serve-options reports."""
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
    kind, name, spec = document["kind"], kind_and_name(document), document.get("spec", {})
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


def _pod(where: str, role: str, template: Json, added: Json) -> Pod:
    """A pod from its template; `added`: the labels that KubeRay adds."""
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(where, role, labels | added, template["spec"])
