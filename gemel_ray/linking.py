"""THE graph: how a document becomes links. Read it like a sentence."""

from __future__ import annotations

from gemel_ray.config import Config
from gemel_ray.graph import Graph
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.records import DOCUMENT, LINK


def linking_graph(config: Config, workspace: Workspace) -> Graph:
    """Documents to links, one row a mention."""
    return Graph(
        stages=(
            config.detect,  # which spans of the text are mentions
            config.encode,  # the picture and the mentions to vectors
            config.retrieve,  # similar solved examples; here a document becomes its mentions
            config.assemble,  # the prompt, as token ids and references to pictures
            config.generate,  # the language model writes the name of an entity
        ),
        source=DOCUMENT,
        result=LINK,
        fingerprint=config.fingerprint(workspace.version),
        knowledge=workspace.knowledge,
    )
