"""Where a workspace's vectors are: written into Qdrant, and read from there or as they lie in the bank."""

from __future__ import annotations

from pathlib import Path

from gemel_ray.knowledge import versions
from gemel_ray.knowledge.matrices import Matrices
from gemel_ray.knowledge.qdrant import EdgeStore, ServerStore
from gemel_ray.knowledge.vectors import Vectors, VectorStore
from gemel_ray.knowledge.workspace import Workspace


def opened(workspace: Workspace) -> Vectors:
    """To be read: from the bank itself, where nothing but an exact answer is asked for."""
    exact_below = workspace.config.vectors.exact_below
    joined = {"mention": "name"} if workspace.config.retrieve.names else {}
    few = not workspace.config.vectors.address and len(workspace.bank) < exact_below
    store = Matrices(workspace.bank) if few else _qdrant(workspace)
    return Vectors(store, workspace.facts["multiplicity"], exact_below, joined)


def created(workspace: Workspace, widths: dict[str, int]) -> Vectors:
    """Empty, to be filled once."""
    at = _at(workspace, workspace.knowledge, workspace.inside)
    store = ServerStore.create(at, widths) if isinstance(at, str) else EdgeStore.create(at, widths)
    return Vectors(store, {}, workspace.config.vectors.exact_below)


def _qdrant(workspace: Workspace) -> VectorStore:
    of = workspace.facts.get("vectors", versions.FIRST)  # the version that they were written for
    at = _at(workspace, of, versions.folder(workspace.folder, of))
    return ServerStore.open(at) if isinstance(at, str) else EdgeStore.open(at)


def _at(workspace: Workspace, version: str, inside: Path) -> str | Path:
    if address := workspace.config.vectors.address:
        return address if version == versions.FIRST else f"{address}-{version}"
    return inside / "vectors"
