"""The graph on a workspace, from documents to links. Its stages and their order are those of Config."""

from __future__ import annotations

from dataclasses import replace

from gemel_ray.config import Config
from gemel_ray.graph import Graph
from gemel_ray.knowledge.workspace import Workspace


def linking_graph(config: Config, workspace: Workspace) -> Graph:
    """The graph from documents to links, one row per mention."""
    fingerprint = config.fingerprint(workspace.version)
    return replace(config.line, fingerprint=fingerprint, knowledge=workspace.knowledge)
