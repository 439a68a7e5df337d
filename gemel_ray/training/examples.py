"""Solved mentions as training needs them, made once and kept in the workspace's `cache/`.

The key of a set of examples is a digest of texts, mentions, targets, pictures, the workspace, its models, and
how prompts are made. It does not contain settings of training alone (steps, rates, prefix), so another
training encodes nothing again. Knows nothing of the language model's weights.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.bank import QUERY_IMAGE, Bank, image_of
from gemel_ray.knowledge.entities import Targets
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.records import Row
from gemel_ray.stage import explode
from gemel_ray.stages.generate import Generate
from gemel_ray.storage import new_folder

Say = Callable[[str], None]
_SCHEMA = pa.schema([pa.field("prompt", pa.list_(pa.int32())), pa.field("target", pa.list_(pa.int32()))])


class Facts(TypedDict):
    """facts.json of a set of examples: the mentions that were left out, by reason."""

    left_out: dict[str, int]
    first_error: str | None


@dataclass(frozen=True)
class Example:
    """A prompt as Assemble writes it, the features of its pictures in order, and the target's tokens."""

    prompt: list[int]
    features: npt.NDArray[np.float32]  # [pictures, feature]; the query's is last
    target: list[int]  # with the end-of-name token


class Examples(Sequence[Example]):
    """A set of examples, memory-mapped: all processes on a machine share one copy."""

    def __init__(self, folder: Path, bank: Bank) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / "examples.arrow"))).read_all()
        self.queries = np.load(folder / "features.npy", mmap_mode="r")  # features of the queries' pictures
        self._bank = bank
        self.facts: Facts = json.loads((folder / "facts.json").read_text())
        self.key = folder.name

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        prompt: list[int] = self._table["prompt"][at].as_py()
        features = [
            self.queries[at] if r == QUERY_IMAGE else self._bank.image_vectors[self._image_row(r)]
            for r in prompt
            if r < 0
        ]
        return Example(prompt, np.array(features, np.float32), self.target(at))

    def target(self, at: int) -> list[int]:
        """The tokens of the target of example `at`, with the end-of-name token."""
        tokens: list[int] = self._table["target"][at].as_py()
        return tokens

    def _image_row(self, reference: int) -> int:
        return self._bank.image_row(image_of(reference))


def prepared(config: Config, workspace: Workspace, files: Sequence[str], say: Say) -> Examples:
    """The mentions of `files` with a target and a picture, from the cache if they are in it.

    An example never demonstrates itself, whatever the workspace's settings: its prompt would contain its
    target. Raises ValueError, which says what is missing, if there is no such mention.
    """
    config = replace(config, retrieve=replace(config.retrieve, allow_itself=False))
    workspace = workspace.before_training(config.train.prefix)
    folder = workspace.folder / "cache" / _key(config, workspace, files)
    if not folder.exists():
        say(f"encoding {', '.join(files)}")
        _make(config, workspace, files, folder)
    examples = Examples(folder, workspace.bank)
    facts, names = examples.facts, ", ".join(files)
    if len(examples):
        if left_out := {why: n for why, n in facts["left_out"].items() if n}:
            say(f"{names}: left out " + ", ".join(f"{n:,} mentions {why}" for why, n in left_out.items()))
        return examples
    reason = f" (the first error: {facts['first_error']})" if facts["first_error"] else ""
    counted = ", ".join(f"{n:,} {why}" for why, n in facts["left_out"].items()) or "there is no mention"
    raise Mistake(
        f"{names}: no mention to train on or to evaluate: {counted}{reason}. Training needs documents with "
        "an `image` and mentions with a `target`, both in --train and --dev"
    )


def _key(config: Config, workspace: Workspace, files: Sequence[str]) -> str:
    """The key of a set of examples. It does not depend on settings of Generate or of training."""
    meaning = replace(config, generate=Generate(), models=replace(config.models, mapper="auto"))
    facts = meaning.fingerprint(workspace.facts["version"], workspace.facts["revisions"])
    digest = hashlib.blake2b(facts.encode(), digest_size=12)
    for row in _rows(config, files):
        address = Path(row["image_address"] or "")
        if row["image"] is None and row["image_address"] and address.is_file():
            row["image"] = address.read_bytes()
        picture = row.pop("image")
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
        digest.update(hashlib.blake2b(picture or b"").digest())
    return digest.hexdigest()


def _documents_of(config: Config, files: Sequence[str]) -> Iterator[pa.Table]:
    """The documents of these files, read as the configuration says."""
    for file in files:
        yield from documents(file, fetch_official_images=config.input.fetch_official_images)


def _rows(config: Config, files: Sequence[str]) -> Iterator[Row]:
    for table in _documents_of(config, files):
        yield from table.to_pylist()


def _make(config: Config, workspace: Workspace, files: Sequence[str], folder: Path) -> None:
    """Make `folder`; it is complete or absent."""
    left_out: Counter[str] = Counter()
    errors: list[str] = []
    vectors: list[list[float]] = []
    with new_folder(folder) as aside:
        with pa.ipc.new_file(str(aside / "examples.arrow"), _SCHEMA) as file:
            for rows in _solved(config, workspace, files, left_out, errors):
                vectors += [r["image_vector"] for r in rows]
                file.write_table(pa.Table.from_pylist(rows, _SCHEMA))
        np.save(aside / "features.npy", np.array(vectors, np.float32))
        facts: Facts = {"left_out": left_out, "first_error": errors[0] if errors else None}
        (aside / "facts.json").write_text(json.dumps(facts))


def _solved(
    config: Config, workspace: Workspace, files: Sequence[str], left_out: Counter[str], errors: list[str]
) -> Iterator[list[Row]]:
    """Rows with prompt, image_vector and target; the target in tokens."""
    for batch in through_graph(config, workspace, files):
        rows = []
        for row in batch:
            if why := _why_left_out(row):
                left_out[why] += 1
                errors += [row["error"]] if row["error"] else []
            else:
                rows.append(row)
        names = workspace.tokenize([row["target"] for row in rows])
        yield [
            row | {"target": [*name, workspace.tree.end_token]} for row, name in zip(rows, names, strict=True)
        ]


def through_graph(
    config: Config,
    workspace: Workspace,
    files: Sequence[str],
    wanted: Callable[[Row, str | None], bool] = lambda row, name: bool(name),
) -> Iterator[list[Row]]:
    """Rows as Generate reads them, batch by batch. Each has its `target` as a name of the knowledge base, or
    None. `wanted` decides, from a mention as it was read and this name, whether the mention has its
    target."""
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names[:-1], workspace)
    targets: dict[tuple[str, str], str | None] = {}
    known = Targets(workspace.entities)

    def batches() -> Iterator[pa.Table]:
        documents_before = 0
        for read in _documents_of(config, files):
            table = _numbered(read, documents_before)  # several documents may have the same id
            documents_before += len(table)
            for row in explode(table.append_column("status", table["error"]), ("given",)).to_pylist():
                if wanted(row, name := known.name(row["target"], row["target_id"])):
                    targets[row["document_id"], row["mention_id"]] = name
            yield table

    try:
        for result in run_in_process(segment, batches()):
            yield [
                row | {"target": targets.get((row["document_id"], row["mention_id"]))}
                for row in result.to_pylist()
            ]
    finally:
        segment.close()


def _numbered(table: pa.Table, first: int) -> pa.Table:
    """The documents with numbers as ids."""
    ids = pa.array([str(first + i) for i in range(len(table))])
    return table.set_column(table.column_names.index("document_id"), "document_id", ids)


def _why_left_out(row: Row) -> str | None:
    if row["error"]:
        return "with an error"
    if not row["target"]:
        return "without a target"
    return "without a picture" if row["image_vector"] is None or not row["prompt"] else None
