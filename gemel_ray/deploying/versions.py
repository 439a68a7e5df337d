"""Checks images and versions against the pinned ones: nodes with different versions of Ray refuse each other,
and KubeRay chooses probes and checks by rayVersion."""

from __future__ import annotations

import re
from importlib.metadata import version

from gemel_ray.deploying.manifests import Found, Manifests, cluster
from gemel_ray.deploying.placement import gpus, room
from gemel_ray.doctor import PINS

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def images(manifests: Manifests) -> Found:
    """Every image has a version."""
    for pod in manifests.pods():
        for container in pod.containers:
            _, tag, digest = _split(container.get("image", ""))
            if (not tag and not digest) or tag.startswith("latest"):
                yield pod.where, f"{container['name']}'s image {container.get('image')} needs a version"


def digests(manifests: Manifests) -> Found:
    """Every image has a digest: a tag can be moved by anyone who may write to the registry."""
    for pod in manifests.pods():
        for container in pod.containers:
            name, _, digest = _split(container.get("image", ""))
            if not _DIGEST.fullmatch(digest):
                says = f"images: [{{name: {name}, digest: sha256:...}}] in your overlay"
                yield pod.where, f"{container['name']}'s image {container.get('image')} has no digest: {says}"


def _split(image: str) -> tuple[str, str, str]:
    """Name, tag and digest of an image's address; it may have a tag, a digest, or both."""
    address, _, digest = image.partition("@")
    name, _, tag = address.rpartition("/")[2].partition(":")
    return name, tag, digest


def ray(manifests: Manifests) -> Found:
    """All pods have the pinned Ray, this release, and the build (cpu or gpu) that their resources need."""
    for where, document in manifests.of("RayJob", "RayService", "RayCluster"):
        spec = cluster(document)
        if spec.get("rayVersion") != PINS["ray"]:
            yield where, f"rayVersion must be {PINS['ray']}, which is pinned"
        build = "gpu" if gpus(room(spec, "maxReplicas")) else "cpu"
        tag = f"{version('gemel-ray')}-ray{PINS['ray']}-{build}"
        for pod in manifests.pods(where):
            name, given, digest = _split(pod.main["image"])
            if name != "gemel-ray" or (given != tag and not (digest and not given)):
                yield pod.where, f"its image must be gemel-ray:{tag}, not {pod.main['image']}"


def qdrant(manifests: Manifests) -> Found:
    """Client and server are at most one minor version apart."""
    client = int(PINS["qdrant-client"].split(".")[1])
    for pod in manifests.pods():
        name, tag, _ = _split(pod.main["image"])
        if name == "qdrant" and tag and abs(int(tag.split(".")[1]) - client) > 1:
            yield (
                pod.where,
                f"Qdrant {tag} is more than one minor version from qdrant-client {PINS['qdrant-client']}",
            )
