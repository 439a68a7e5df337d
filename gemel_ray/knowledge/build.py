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
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.detecting.linked import Learnt
from gemel_ray.errors import WorkspaceError
from gemel_ray.graph import Segment
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import entity_files, prefix_tree, thumbnails, triple_files
from gemel_ray.knowledge.lengths import in_words, longest_name
from gemel_ray.knowledge.targets import Targets
from gemel_ray.knowledge.workspace import Workspace, resolved, revisions
from gemel_ray.knowledge.writing import BankWriter, Made, index, new_workspace, write_facts
from gemel_ray.linking import linking_graph
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.models.tokenizer import end_token, load_tokenizer, tokenize
from gemel_ray.progress import Meter, Progress
from gemel_ray.readers import BATCH, count, documents
from gemel_ray.readers.fields import NIL, short
from gemel_ray.records import DOCUMENT
from gemel_ray.tables import explode

_LOOKED_AT = 4  # tables of a file
Say = Callable[[str], None]
_STARTER = Path(__file__).parents[1] / "starter" / "data" / "mapper.safetensors"
_KEPT = ["document_id", "text", "mention_id", "mention", "target", "target_id"]
_KEPT += ["image_vector", "mention_vector", "thumbnail", "error"]


def build(
    config: Config,
    entities: str,
    demonstrations: list[str],
    output: Path,
    say: Say,
    *,
    triples: str | None = None,
    replacing: bool = False,
) -> Made:
    """Make the workspace `output`. Raises ValueError, before anything is done, where something else lies
    there, or a workspace that is not to be replaced; one that is gives way when the new one is whole."""
    with new_workspace(output, replacing, config.vectors, say) as (folder, made):
        _fill(folder, made, config, (entities, triples), demonstrations, say)
    return made


def _fill(
    folder: Path,
    made: Made,
    config: Config,
    known: tuple[str, str | None],
    demonstrations: list[str],
    say: Say,
) -> None:
    (entities, triples), names = known, resolved(config.models)
    tokenizer = load_tokenizer(names["language"])
    began = time.perf_counter()
    refusal = longest_name(partial(tokenize, tokenizer), config.bank.longest_name)
    read = entity_files.read(entities, made.rejects, refusal)
    knowledge = entity_file.write(
        read, folder / "entities.arrow", lambda reason: made.rejects(f"{entities}:{reason}")
    )
    if not len(knowledge):
        why = "; ".join(made.rejects.first[:3]) or "the file is empty"
        raise WorkspaceError(f"{entities} holds no entity: {why}")
    end = end_token(names["language"], config.models.end_of_name)
    tree = prefix_tree.build(knowledge.names(), partial(tokenize, tokenizer), end, folder / "tree")
    say(f"{len(knowledge):,} entities, {len(tree):,} names, {time.perf_counter() - began:.1f} s")
    if triples:
        say(triple_files.index(triples, knowledge, folder / "ranking", made.rejects))
    _mapper(folder, config, names, say)
    write_facts(folder, config, names, made)
    workspace = Workspace(folder, config, json.loads((folder / "workspace.json").read_text()))
    _bank(workspace, demonstrations, made, say)
    if config.bank.ranker and made.demonstrations >= config.bank.ranker:
        from gemel_ray.ranking.making import make

        say(make(workspace))
    write_facts(folder, config, names, made)


def _mapper(folder: Path, config: Config, names: dict[str, str], say: Say) -> None:
    """Copy the configured mapper in. One that was trained for other models is refused; `auto` takes the
    starter's where it fits, and none elsewhere."""
    wanted = config.models.mapper
    file = _STARTER if wanted == "auto" else Path(wanted)
    if wanted == "none" or (wanted == "auto" and not file.exists()):
        return
    made, now = FeatureMapper.load(file)[1].get("revisions", {}), revisions(names)
    before = revisions(names, whole=False)  # as mappers were marked that are older than whole revisions
    asked = ("language", "clip", "clip_feature")
    strange = [k for k in asked if k in made and made[k] not in (now[k], before[k])]
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
    """Encode the demonstrations, tokenise them, and fill the vector store. Behind the solved examples, so
    that of equal mentions those stand first, come the knowledge base's own names."""
    few = len(workspace.entities) <= workspace.config.bank.names
    known = Targets(workspace.entities.pairs() if inputs or few else ())
    for line in first_targets(inputs, known):
        say(line)
    began = time.perf_counter()
    fetch = workspace.config.input.fetch_official_images
    learnt = Learnt()
    given = learnt.noting(t for f in inputs for t in documents(f, fetch_official_images=fetch))
    total = sum(count(f) or 0 for f in inputs) + few * len(workspace.entities)
    folder = workspace.folder / "bank"
    with Meter("documents", total) as meter, thumbnails.writing(folder) as kept:
        writer = BankWriter(workspace, kept)
        examples, names = (
            [
                writer.table(solved)
                for table in encoded(workspace, tables, meter)
                if (solved := demonstrating(table, known, made))
            ]
            for tables in (given, own_examples(forms(workspace.entities.rows())) if few else ())
        )
    if writer.cut:
        say(in_words(writer.cut, workspace.config.bank.longest_example))
    if inputs:
        learnt.write(workspace.entities.surface_forms(), workspace.folder)
    made.demonstrations, made.names = (sum(map(len, tables)) for tables in (examples, names))
    bank = bank_file.write(examples, names, writer.pictures(), writer.mentions_as_vectors(), folder)
    made.multiplicity = index(bank, workspace.new_vectors)
    made.pictures = len(writer.features)
    seconds = time.perf_counter() - began
    say(
        f"{made.demonstrations:,} demonstrations, {made.names:,} names as examples of their own, "
        f"{made.pictures:,} pictures, {seconds:.1f} s"
    )


def first_targets(inputs: Iterable[str], known: Targets) -> Iterator[str]:
    """What is said before the work where most of a file's first targets are unknown: three of them."""
    for file in inputs:
        told = [
            (mention["target"], mention["target_id"])
            for table in islice(documents(file), _LOOKED_AT)
            for row in table.select(["given"]).to_pylist()
            for mention in row["given"] or ()
            if mention["target"] or mention["target_id"] not in (None, NIL)
        ]
        strange = [t or i for t, i in told if known.name(t, i) not in known]
        if 2 * len(strange) > len(told):
            shown = ", ".join(short(name, 40) for name in dict.fromkeys(strange[:3]))
            yield (
                f"{file}: {len(strange):,} of the first {len(told):,} targets are no entity's name or id: "
                f"{shown}"
            )


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


def encoded(workspace: Workspace, tables: Iterable[pa.Table], meter: Meter) -> Iterator[pa.Table]:
    """The documents' mentions, one a row, with their vectors. The models are loaded for the first of them."""
    segment: Segment | None = None
    small = thumbnails.Collected(workspace)
    try:
        for table in tables:
            given = table.filter(pa.compute.or_(table["given"].is_valid(), table["error"].is_valid()))
            if not len(given):
                continue
            if segment is None:
                graph = linking_graph(workspace.config, workspace)
                segment = graph.segment(["detect", "encode"], workspace)
            encoded = asyncio.run(segment.run(given))
            column = small.of(given, encoded["error"].is_null().to_pylist())
            mentions = explode(encoded.append_column("thumbnail", column), ("mentions", "mention_vectors"))
            yield mentions
            wrong = len(mentions) - mentions["error"].null_count
            found = {"solved": len(mentions) - wrong, "error": wrong}
            meter.add(Progress(len(mentions["document_id"].unique()), found))
    finally:
        if segment is not None:
            segment.close()


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
