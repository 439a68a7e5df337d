"""The gold mentions linked by a workspace's ranker alone: what a language model has to beat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.evaluation.judged import Key, Row, answered, key
from gemel_ray.ranking.evidence import MOST
from gemel_ray.readers import documents

_ALONE = ["generate.ranking=1", f"retrieve.ranking={MOST}", f"generate.beams={MOST}"]  # all candidates


def ranked_alone(
    folder: Path, gold: Sequence[str], run: Mapping[str, Any], *, descriptions: bool = True
) -> dict[Key, Row] | None:
    """Its answers to the mentions of the gold files; None where the workspace has no ranker. `run`: the
    manifest of the job that it is held against, whose examples and neighbours it takes. `descriptions` False:
    those of all entities are hidden."""
    from gemel_ray.config import load
    from gemel_ray.graph import run_in_process
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.linking import linking_graph

    retrieve = run.get("configuration", {}).get("retrieve", {})
    own = [f"retrieve.{name}={json.dumps(value)}" for name, value in retrieve.items()]
    if not retrieve.get("ranking", 1):
        return None
    own += [*_ALONE, f"retrieve.descriptions={json.dumps(descriptions)}"]
    config = load(None, read_facts(folder)["settings"], own)
    workspace = Workspace.open(folder, config)
    if not workspace.ranks:
        return None
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names, workspace)
    try:
        tables = run_in_process(segment, _mentioning(gold))
        return {key(row): answered(row) for table in tables for row in table.to_pylist()}
    finally:
        segment.close()


def _mentioning(files: Sequence[str]) -> Iterator[pa.Table]:
    """Documents whose mentions are given."""
    for file in files:
        for table in documents(file):
            if len(given := table.filter(table["given"].is_valid())):
                yield given
