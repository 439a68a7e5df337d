"""Files to a workspace: prefix tree, entities, demonstration bank, vectors, mapper.

Demonstrations go through the graph's own Detect and Encode, so that a vector here and a vector asked
later are made by the same code. A workspace appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.graph import explode
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import prefix_tree
from gemel_ray.knowledge.workspace import (
    FORMAT,
    Workspace,
    WorkspaceError,
    end_token,
    load_tokenizer,
    resolved,
    revisions,
    tokenize,
)
from gemel_ray.linking import linking_graph
from gemel_ray.models.clip import unit
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.progress import Meter, Progress
from gemel_ray.readers import count, documents
from gemel_ray.stages.assemble import demonstration_text

Say = Callable[[str], None]
_POINTS = 4096
_STARTER = Path(__file__).parents[1] / "starter" / "data" / "mapper.safetensors"
_KEPT = ("document_id", "text", "mention_id", "mention", "target", "image_vector", "mention_vector", "error")


@dataclass
class Made:
    """What a build found, for the report and for workspace.json."""

    rejects: list[str] = field(default_factory=list)
    demonstrations: int = 0
    pictures: int = 0
    unknown_targets: int = 0
    multiplicity: dict[str, int] = field(default_factory=dict)  # most rows with one vector: see vectors.py


def build(config: Config, entities: str, demonstrations: list[str], output: Path, say: Say) -> Made:
    """Make the workspace `output`; an existing one is replaced when the new one is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        made = _fill(folder, config, entities, demonstrations, say)
        folder.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _fill(folder: Path, config: Config, entities: str, demonstrations: list[str], say: Say) -> Made:
    made, names = Made(), resolved(config.models)
    tokenizer = load_tokenizer(names["language"])
    began = time.perf_counter()
    knowledge = entity_file.write(entity_file.read(entities, made.rejects), folder / "entities.arrow")
    end = end_token(names["language"], config.models.end_of_name)
    tree = prefix_tree.build(knowledge.names(), lambda t: tokenize(tokenizer, t), end, folder / "tree")
    say(f"{len(knowledge):,} entities, {len(tree):,} names, {time.perf_counter() - began:.1f} s")
    _mapper(folder, config, names, say)
    _write_facts(folder, config, names, made)
    workspace = Workspace(folder, config, json.loads((folder / "workspace.json").read_text()))
    _bank(workspace, demonstrations, made, say)
    _write_facts(folder, config, names, made)
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


def _write_facts(folder: Path, config: Config, names: dict[str, str], made: Made) -> None:
    facts: dict[str, Any] = {
        "format": FORMAT,
        "models": config.plain()["models"],
        "revisions": revisions(names),
        "demonstrations": made.demonstrations,
        "pictures": made.pictures,
        "multiplicity": made.multiplicity,
        "settings": {"models": {k: v for k, v in config.plain()["models"].items() if k != "mapper"}},
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for file in sorted([*folder.glob("*.arrow"), *folder.glob("tree/*"), *folder.glob("bank/*")]):
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)  # type: ignore[arg-type, return-value]
    facts["version"] = digest.hexdigest()
    (folder / "workspace.json").write_text(json.dumps(facts, indent=2))


def _bank(workspace: Workspace, inputs: list[str], made: Made, say: Say) -> None:
    """Encode the demonstrations, tokenise them, and fill the vector store."""
    known = set(workspace.entities.names()) if inputs else set()
    writer = _BankWriter(workspace, made)
    tables: list[pa.Table] = []
    began = time.perf_counter()
    with Meter("documents", sum(count(f) or 0 for f in inputs)) as meter:
        for table in _encoded(workspace, inputs):
            solved = [r for r in table.select(_KEPT).to_pylist() if _solved(r, made)]
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


def _solved(row: dict[str, Any], made: Made) -> bool:
    if row["error"]:
        made.rejects.append(f"{row['document_id']}: {row['error']}")
    return not row["error"] and bool(row["mention"] and row["target"])


class _BankWriter:
    """Gathers pictures' features (each once) and streams mention vectors into the store."""

    def __init__(self, workspace: Workspace, made: Made) -> None:
        self.workspace, self.made = workspace, made
        self.features: list[list[float]] = []
        self.picture_of: dict[bytes, int] = {}
        self.mentions: Counter[str] = Counter()
        self.uses: Counter[int] = Counter()
        self.rows: list[int] = []
        self.mention_vectors: list[npt.NDArray[np.float32]] = []

    def table(self, solved: list[dict[str, Any]]) -> pa.Table:
        """The bank's rows of some solved mentions."""
        pieces = [demonstration_text(r["text"], r["mention"], r["target"]) for r in solved]
        tokens = self.workspace.tokenize(pieces)
        rows = [
            {
                "id": f"{r['document_id']}/{r['mention_id']}",
                "text": r["text"],
                "mention": r["mention"],
                "target": r["target"],
                "tokens": ids,
                "image_row": self._picture(r),
            }
            for r, ids in zip(solved, tokens, strict=True)
        ]
        self.mention_vectors.append(np.array([r["mention_vector"] for r in solved], np.float32))
        self.mentions.update(r["mention"] for r in solved)
        return pa.Table.from_pylist(rows, bank_file.SCHEMA)

    def _picture(self, row: dict[str, Any]) -> int:
        vector = row["image_vector"]
        if vector is None:
            picture = -1
        else:
            picture = self.picture_of.setdefault(np.float32(vector).tobytes(), len(self.features))
            if picture == len(self.features):
                self.features.append(vector)
            self.uses[picture] += 1
        self.rows.append(picture)
        return picture

    def pictures(self) -> npt.NDArray[np.float32]:
        """Features of the distinct pictures, float32 [pictures, feature]."""
        return np.array(self.features, np.float32) if self.features else np.empty((0, 1), np.float32)

    def finish(self) -> None:
        """Fill the vector store, and note how many rows share one vector: it makes ties exact."""
        if not self.rows:
            return
        self.made.multiplicity = {"mention": max(self.mentions.values())}
        mentions, features = np.concatenate(self.mention_vectors), unit(self.pictures())
        widths = {"mention": mentions.shape[1]}
        if len(features):
            widths["image"] = features.shape[1]
            self.made.multiplicity["image"] = max(self.uses.values())
        store = self.workspace.new_vectors(widths)
        padded = np.vstack(
            [features, np.full((1, features.shape[1]), np.nan, np.float32)]
        )  # [-1]: no picture
        pictures = np.array(self.rows)
        for start in range(0, len(pictures), _POINTS):
            rows = np.arange(start, min(start + _POINTS, len(pictures)))
            # Vectors reads a row of NaN as a point without a picture.
            with_image = {"image": padded[pictures[rows]]} if len(features) else {}
            store.add(rows, {"mention": mentions[rows], **with_image})
        store.finish()
        store.close()
