"""Files to a workspace: prefix tree, entities, demonstration bank, vectors, mapper.

Demonstrations go through the graph's own Detect and Encode, so that a vector here and a vector asked
later are made by the same code. A workspace appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.graph import explode
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import prefix_tree
from gemel_ray.knowledge.targets import Targets
from gemel_ray.knowledge.workspace import (
    Workspace,
    WorkspaceError,
    end_token,
    load_tokenizer,
    resolved,
    revisions,
    tokenize,
)
from gemel_ray.knowledge.writing import BankWriter, Made, new_folder, write_facts
from gemel_ray.linking import linking_graph
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.progress import Meter, Progress
from gemel_ray.readers import count, documents

Say = Callable[[str], None]
_STARTER = Path(__file__).parents[1] / "starter" / "data" / "mapper.safetensors"
_KEPT = ["document_id", "text", "mention_id", "mention", "target", "target_id"]
_KEPT += ["image_vector", "mention_vector", "error"]


def build(config: Config, entities: str, demonstrations: list[str], output: Path, say: Say) -> Made:
    """Make the workspace `output`; an existing one is replaced when the new one is whole."""
    with new_folder(output) as folder:
        return _fill(folder, config, entities, demonstrations, say)


def _fill(folder: Path, config: Config, entities: str, demonstrations: list[str], say: Say) -> Made:
    made, names = Made(), resolved(config.models)
    tokenizer = load_tokenizer(names["language"])
    began = time.perf_counter()
    knowledge = entity_file.write(entity_file.read(entities, made.rejects), folder / "entities.arrow")
    end = end_token(names["language"], config.models.end_of_name)
    tree = prefix_tree.build(knowledge.names(), lambda t: tokenize(tokenizer, t), end, folder / "tree")
    say(f"{len(knowledge):,} entities, {len(tree):,} names, {time.perf_counter() - began:.1f} s")
    _mapper(folder, config, names, say)
    write_facts(folder, config, names, made)
    workspace = Workspace(folder, config, json.loads((folder / "workspace.json").read_text()))
    _bank(workspace, demonstrations, made, say)
    write_facts(folder, config, names, made)
    return made


def _mapper(folder: Path, config: Config, names: dict[str, str], say: Say) -> None:
    """Copy the configured mapper in. One that was trained for other models is refused; `auto` takes the
    starter's where it fits, and none elsewhere."""
    wanted = config.models.mapper
    file = _STARTER if wanted == "auto" else Path(wanted)
    if wanted == "none" or (wanted == "auto" and not file.exists()):
        return
    made, now = FeatureMapper.load(file)[1].get("revisions", {}), revisions(names)
    strange = [k for k in ("language", "clip", "clip_feature") if k in made and made[k] != now[k]]
    if not strange:
        shutil.copyfile(file, folder / "mapper.safetensors")
    elif wanted != "auto":
        raise WorkspaceError(
            f"{file} was trained with another models.{strange[0]} ({made[strange[0]]}): train one for "
            "these models (gemel-ray train), or set models.mapper=none"
        )
    else:
        say(f"{strange[0]} is not the starter's, nor is there another mapper: pictures serve retrieval only")


def _bank(workspace: Workspace, inputs: list[str], made: Made, say: Say) -> None:
    """Encode the demonstrations, tokenise them, and fill the vector store."""
    known = Targets(workspace.entities.pairs())
    writer = BankWriter(workspace, made)
    tables: list[pa.Table] = []
    began = time.perf_counter()
    with Meter("documents", sum(count(f) or 0 for f in inputs)) as meter:
        for table in _encoded(workspace, inputs):
            solved = [r for r in table.select(_KEPT).to_pylist() if _solved(r, known, made)]
            made.unknown_targets += sum(r["target"] not in known for r in solved)
            if solved:
                tables.append(writer.table(solved))
            made.demonstrations += len(solved)
            found = {"solved": len(solved), "error": len(table) - table["error"].null_count}
            meter.add(Progress(len(table["document_id"].unique()), found))
    bank_file.write(tables, writer.pictures(), workspace.folder / "bank")
    writer.finish()
    made.pictures = len(writer.features)
    if inputs:
        seconds = time.perf_counter() - began
        say(f"{made.demonstrations:,} demonstrations, {made.pictures:,} pictures, {seconds:.1f} s")


def _encoded(workspace: Workspace, inputs: Iterable[str]) -> Iterator[pa.Table]:
    """The inputs' mentions, one a row, with their vectors."""
    inputs = list(inputs)
    if not inputs:
        return
    fetch = workspace.config.input.fetch_official_images
    graph = linking_graph(workspace.config, workspace)
    segment = graph.segment(["detect", "encode"], workspace)
    try:
        for address in inputs:
            for batch in documents(address, fetch_official_images=fetch):
                given = batch.filter(pa.compute.or_(batch["given"].is_valid(), batch["error"].is_valid()))
                if len(given):
                    encoded = asyncio.run(segment.run(given))
                    yield explode(encoded, ("mentions", "mention_vectors"))
    finally:
        segment.close()


def _solved(row: dict[str, Any], known: Targets, made: Made) -> bool:
    """Whether the row can demonstrate; its target becomes a name of the knowledge base, where it has one."""
    if row["error"]:
        made.rejects.append(f"{row['document_id']}: {row['error']}")
    row["target"] = known.name(row["target"], row["target_id"])
    return not row["error"] and bool(row["mention"] and row["target"])
