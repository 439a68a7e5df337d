"""The gold mentions linked by a workspace's ranker alone, which a language model must beat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from gemel_ray.evaluation.judged import Key, for_judging, key
from gemel_ray.job.record import Manifest
from gemel_ray.ranking.evidence import MOST
from gemel_ray.readers import documents
from gemel_ray.records import Row

Answers = dict[Key, Row]
_ALONE = ["generate.ranking=1", f"retrieve.ranking={MOST}", f"generate.beams={MOST}"]  # all candidates
_DESCRIPTIONS = ("retrieve.descriptions=true", "retrieve.descriptions=false")


def ranked_alone(folder: Path, gold: Sequence[str], run: Manifest | None) -> list[Answers | None]:
    """The ranker's answers to the mentions of the gold files, and those with all descriptions hidden; None if
    the workspace has no ranker. `run`: the manifest of the job with which it is compared; the ranker gets the
    same examples and neighbours."""
    from gemel_ray.config import load
    from gemel_ray.graph import run_in_process
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.linking import linking_graph

    retrieve = run["configuration"]["retrieve"] if run else {}
    overrides = [f"retrieve.{name}={json.dumps(value)}" for name, value in retrieve.items()]
    configs = [
        load(None, read_facts(folder)["settings"], [*overrides, *_ALONE, read]) for read in _DESCRIPTIONS
    ]
    workspace = Workspace.open(folder, configs[0])
    if not retrieve.get("ranking", 1) or not workspace.ranks:
        return [None, None]
    graphs = [linking_graph(config, workspace) for config in configs]
    line = graphs[0].names
    shared = line.index("encode") + 1  # up to here both are equal, and take most of the time
    with ExitStack() as closing:
        front, *backs = (
            graph.segment(stages, workspace)
            for graph, stages in ((graphs[0], line[:shared]), *((graph, line[shared:]) for graph in graphs))
        )
        for segment in (front, *backs):
            closing.callback(segment.close)
        found: list[Answers] = [{} for _ in backs]
        for table in run_in_process(front, _with_mentions(gold)):
            for answers, back in zip(found, backs, strict=True):
                rows = (row for part in run_in_process(back, iter([table])) for row in part.to_pylist())
                answers |= {key(row): for_judging(row) for row in rows}
        return [*found]


def _with_mentions(files: Sequence[str]) -> Iterator[pa.Table]:
    """The documents whose mentions are given."""
    for file in files:
        for table in documents(file):
            if len(given := table.filter(table["given"].is_valid())):
                yield given
