"""The gold mentions linked by a workspace's ranker alone, which a language model must beat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.evaluation.judged import Key, for_judging, key
from gemel_ray.ranking.evidence import MOST
from gemel_ray.readers import documents
from gemel_ray.records import Row

_ALONE = ["generate.ranking=1", f"retrieve.ranking={MOST}", f"generate.beams={MOST}"]  # all candidates


def ranked_alone(
    folder: Path, gold: Sequence[str], run: Mapping[str, Any], *, descriptions: bool = True
) -> dict[Key, Row] | None:
    """The ranker's answers to the mentions of the gold files; None if the workspace has no ranker. `run`: the
    manifest of the job with which it is compared; the ranker gets the same examples and neighbours.
    `descriptions` False: the descriptions of all entities are hidden."""
    from gemel_ray.config import load
    from gemel_ray.graph import run_in_process
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.linking import linking_graph

    retrieve = run.get("configuration", {}).get("retrieve", {})
    overrides = [f"retrieve.{name}={json.dumps(value)}" for name, value in retrieve.items()]
    if not retrieve.get("ranking", 1):
        return None
    overrides += [*_ALONE, f"retrieve.descriptions={json.dumps(descriptions)}"]
    config = load(None, read_facts(folder)["settings"], overrides)
    workspace = Workspace.open(folder, config)
    if not workspace.ranks:
        return None
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names, workspace)
    try:
        tables = run_in_process(segment, _with_mentions(gold))
        return {key(row): for_judging(row) for table in tables for row in table.to_pylist()}
    finally:
        segment.close()


def _with_mentions(files: Sequence[str]) -> Iterator[pa.Table]:
    """The documents whose mentions are given."""
    for file in files:
        for table in documents(file):
            if len(given := table.filter(table["given"].is_valid())):
                yield given
