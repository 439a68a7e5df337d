"""Images and versions against the pinned ones: Ray refuses to talk to another Ray, and KubeRay chooses
probes and checks by rayVersion."""

from __future__ import annotations

from importlib.metadata import version

from gemel_ray.deploying.manifests import Found, Manifests, cluster
from gemel_ray.deploying.placement import gpus, room
from gemel_ray.doctor import PINS


def images(manifests: Manifests) -> Found:
    """Every image says its version."""
    for pod in manifests.pods():
        for container in pod.containers:
            tag = _short(container.get("image", "")).partition(":")[2]
            if not tag or tag.startswith("latest"):
                yield pod.where, f"{container['name']}'s image {container.get('image')} needs a version"


def ray(manifests: Manifests) -> Found:
    """One Ray, one package, and the build of vLLM for what the pods have."""
    for where, document in manifests.of("RayJob", "RayService", "RayCluster"):
        spec = cluster(document)
        if spec.get("rayVersion") != PINS["ray"]:
            yield where, f"rayVersion must be {PINS['ray']}, which is pinned"
        build = "gpu" if gpus(room(spec, "maxReplicas")) else "cpu"
        tag = f"{version('gemel-ray')}-ray{PINS['ray']}-{build}"
        for pod in manifests.pods(where):
            if _short(pod.main["image"]) != f"gemel-ray:{tag}":
                yield pod.where, f"its image must be gemel-ray:{tag}, not {pod.main['image']}"


def qdrant(manifests: Manifests) -> Found:
    """Client and server may be one minor version apart."""
    client = int(PINS["qdrant-client"].split(".")[1])
    for pod in manifests.pods():
        name, _, tag = _short(pod.main["image"]).partition(":")
        if name == "qdrant" and abs(int(tag.split(".")[1]) - client) > 1:
            yield (
                pod.where,
                f"Qdrant {tag} is more than one minor version from qdrant-client {PINS['qdrant-client']}",
            )


def _short(image: str) -> str:
    """Name and tag, without registry and digest."""
    return image.rpartition("/")[2].partition("@")[0]
