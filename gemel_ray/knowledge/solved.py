"""What becomes an example in the bank: solved documents and the knowledge base's own names, encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.graph import Segment
from gemel_ray.knowledge import thumbnails
from gemel_ray.knowledge.targets import Targets
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.knowledge.writing import Made
from gemel_ray.linking import linking_graph
from gemel_ray.progress import Meter, Progress
from gemel_ray.readers import BATCH
from gemel_ray.records import DOCUMENT
from gemel_ray.stages.encoding import Encoding
from gemel_ray.tables import explode

_KEPT = ["document_id", "text", "mention_id", "mention", "target", "target_id"]
_KEPT += ["image_vector", "mention_vector", "thumbnail", "error"]


def forms(entities: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every entity with its name and with each of its aliases."""
    for entity in entities:
        for form in dict.fromkeys([entity["name"], *(entity["aliases"] or ())]):
            yield entity, form


def own_examples(named: Iterable[tuple[dict[str, Any], str]]) -> Iterator[pa.Table]:
    """A name or alias of an entity as a document that mentions itself: with it in the prompt the language
    model has read the name, and knows how it is written. (Not in the paper, which shows training mentions
    only.)"""
    rows: list[dict[str, Any]] = []
    for entity, form in named:
        text = f"{form}: {entity['description']}" if entity["description"] else form
        mention = {"mention_id": f"0-{len(form)}", "mention": form, "start": 0, "end": len(form)}
        rows.append(
            {
                "document_id": entity["id"],
                "text": text,
                "image_address": entity["image"],
                "given": [mention | {"target": entity["name"], "target_id": entity["id"]}],
            }
        )
        if len(rows) >= BATCH:
            yield pa.Table.from_pylist(rows, DOCUMENT)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, DOCUMENT)


def encoded(
    workspace: Workspace, config: Config, tables: Iterable[pa.Table], meter: Meter
) -> Iterator[pa.Table]:
    """The documents' mentions, one a row, with their vectors. The models are loaded for the first of them."""
    segment: Segment | None = None
    encoding: Encoding | None = None
    small = thumbnails.Collected(config.bank.thumbnails, config.encode.limits)
    try:
        for table in tables:
            given = table.filter(pa.compute.or_(table["given"].is_valid(), table["error"].is_valid()))
            if not len(given):
                continue
            if segment is None:
                encoding = Encoding(config.encode, workspace, small.add if small.wanted else None)
                graph = linking_graph(config, workspace)
                segment = graph.segment(["detect", "encode"], workspace, {"encode": encoding})
            encoded = asyncio.run(segment.run(given))
            column = small.of(given, encoded["error"].is_null().to_pylist())
            mentions = explode(encoded.append_column("thumbnail", column), ("mentions", "mention_vectors"))
            yield mentions
            wrong = len(mentions) - mentions["error"].null_count
            found = {"solved": len(mentions) - wrong, "error": wrong}
            meter.add(Progress(len(mentions["document_id"].unique()), found))
    finally:
        if segment is not None and encoding is not None:
            segment.close()
            encoding.close()


def demonstrating(table: pa.Table, known: Targets, made: Made) -> list[dict[str, Any]]:
    """The rows that can demonstrate; targets become names of the knowledge base, where it has them."""
    solved = []
    for row in table.select(_KEPT).to_pylist():
        if row["error"]:
            made.rejects(f"{row['document_id']}: {row['error']}")
            continue
        doubts = known.doubts
        row["target"] = known.name(row["target"], row["target_id"])
        made.doubtful_targets += known.doubts - doubts
        if row["mention"] and row["target"]:
            made.unknown_targets += row["target"] not in known
            solved.append(row)
    return solved
