"""Writing a workspace: complete or not at all, with facts on what it was made from.

    with new_workspace(output, ...) as (folder, made): ...; BankWriter(workspace); ...; index(bank, ...);
        write_facts(...)

Knows nothing of where entities, examples and vectors come from: build.py makes them with the models,
gemel/importing.py takes them from GEMEL's files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import thumbnails, vector_stores
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entity, Rejects, Targets
from gemel_ray.knowledge.thumbnails import FILE as THUMBNAILS
from gemel_ray.knowledge.thumbnails import ThumbnailWriter
from gemel_ray.knowledge.vectors import Matrix, Vectors
from gemel_ray.knowledge.versions import FORMAT, Facts
from gemel_ray.knowledge.workspace import Workspace, revisions
from gemel_ray.linking import linking_graph
from gemel_ray.models.encoders import unit
from gemel_ray.progress import Meter, Progress
from gemel_ray.readers import BATCH
from gemel_ray.readers.fields import short
from gemel_ray.readers.mentions import place
from gemel_ray.records import DOCUMENT, Row
from gemel_ray.settings import Vectors as Options
from gemel_ray.stage import Segment, explode
from gemel_ray.stages.assemble import cut, demonstration_text
from gemel_ray.stages.encoding import Encoding
from gemel_ray.storage import new_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_POINTS = 4096
Say = Callable[[str], None]


@dataclass
class Made:
    """Figures of a build, for the report and for workspace.json."""

    rejects: Rejects = field(default_factory=Rejects)
    demonstrations: int = 0
    names: int = 0  # of the knowledge base, used as examples
    pictures: int = 0
    unknown_targets: int = 0
    doubtful_targets: int = 0  # both a name and another entity's id
    multiplicity: dict[str, int] = field(default_factory=dict)  # most rows with one vector: see vectors.py
    collection: str = ""  # of a Qdrant server, for the vectors


@contextmanager
def new_workspace(output: Path, replacing: bool, options: Options, say: Say) -> Iterator[tuple[Path, Made]]:
    """A folder to be filled, which becomes the workspace `output` at the end, and the figures to fill in. A
    Qdrant server is checked first; it drops the vectors of a workspace that is replaced. Raises ValueError as
    `free` does."""
    free(output, replacing)
    former = vector_stores.recorded_collections(output)
    with vector_stores.new_collection(options, say) as collection, new_folder(output) as folder:
        yield folder, Made(collection=collection)
    vector_stores.drop(former, options, say)


def free(output: Path, replacing: bool) -> None:
    """Raise ValueError if something at `output` must not be overwritten: anything but a workspace, or a
    workspace and `replacing` is False."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "workspace.json").is_file():
        raise Mistake(
            f"{output} exists and is not a workspace: give a folder that is empty or does not exist"
        )
    if not replacing:
        raise Mistake(f"{output} is a workspace already: --replace puts the new one in its place")


def write_facts(
    folder: Path, config: Config, names: dict[str, str], made: Made, **carried: dict[str, Any]
) -> None:
    """Write workspace.json: what is in the folder, its models, and the settings it carries (sections of
    ray_config.yaml beside `models`)."""
    models = config.plain()["models"]
    facts = {
        "format": FORMAT,
        "models": models,
        "revisions": revisions(names),
        "demonstrations": made.demonstrations,
        "names": made.names,
        "pictures": made.pictures,
        "multiplicity": made.multiplicity,
        "settings": {"models": {k: v for k, v in models.items() if k != "mapper"}, **carried},
    }
    seal(folder, facts, **vector_stores.record(made.collection))


def seal(folder: Path, facts: Facts, **history: Any) -> None:
    """Write workspace.json: the facts, a digest of them and of the knowledge in the folder (`version`), and
    its `history`, which is not part of the digest."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    inside = ("*.arrow", "tree/*", "bank/*", "features/*", "ranking/*")
    for file in sorted(file for pattern in inside for file in folder.glob(pattern)):
        if file.name == THUMBNAILS:
            continue  # no answer depends on them
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)  # type: ignore[arg-type, return-value]
    whole = facts | {"version": digest.hexdigest()} | history
    (folder / "workspace.json").write_text(json.dumps(whole, indent=2))


class BankWriter:
    """Makes the bank's rows of solved mentions, and collects their vectors and their pictures' features, each
    feature once and after those already `known`, float32 [pictures, feature]."""

    def __init__(
        self,
        workspace: Workspace,
        longest: int,
        thumbnails: ThumbnailWriter | None = None,
        known: Matrix | None = None,
    ) -> None:
        self.workspace, self.longest, self.thumbnails = workspace, longest, thumbnails
        self.features: list[Matrix] = list(known) if known is not None else []
        self.picture_of = {_digest(feature): row for row, feature in enumerate(self.features)}
        self.mention_vectors: list[Matrix] = []
        self.cut: list[str] = []  # ids of the examples whose text was cut

    def table(self, solved: list[Row]) -> pa.Table:
        """The bank's rows of some solved mentions."""
        pieces = [demonstration_text(r["text"], r["mention"], r["target"]) for r in solved]
        tokens = list(map(self._within, solved, self.workspace.tokenize(pieces)))
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
        return pa.Table.from_pylist(rows, bank_file.SCHEMA)

    def _within(self, row: Row, tokens: list[int]) -> list[int]:
        if len(tokens) <= self.longest:
            return tokens
        self.cut.append(row["document_id"])
        return example_tokens(self.workspace.tokenizer, row, self.longest) or tokens

    def _picture(self, row: Row) -> int:
        if row["image_vector"] is None:
            return -1
        feature = np.array(row["image_vector"], np.float32)
        picture = self.picture_of.setdefault(_digest(feature), len(self.features))
        if picture == len(self.features):
            self.features.append(feature)
            if self.thumbnails is not None:
                self.thumbnails.add(row.get("thumbnail"))
        return picture

    def pictures(self) -> Matrix:
        """Features of the distinct pictures, float32 [pictures, feature]."""
        return np.array(self.features, np.float32) if self.features else np.empty((0, 1), np.float32)

    def mentions_as_vectors(self) -> Matrix:
        """Vectors of the mentions of all rows, float32 [rows, width]."""
        return np.concatenate(self.mention_vectors) if self.mention_vectors else np.empty((0, 1), np.float32)


def _digest(feature: Matrix) -> bytes:
    return hashlib.blake2b(feature.tobytes(), digest_size=16).digest()


def index(bank: Bank, create: Callable[[dict[str, int]], Vectors]) -> dict[str, int]:
    """Fill a new vector store, created for the widths of its vectors, with the whole bank: solved examples
    are found as mentions, the knowledge base's names as names. Returns how many rows share one vector, which
    makes ties exact (see vectors.py)."""
    if not len(bank):
        return {}
    mentions, features = bank.mention_vectors, unit(np.asarray(bank.image_vectors))
    widths = {"mention": mentions.shape[1]}
    if bank.examples < len(bank):
        widths["name"] = mentions.shape[1]
    if len(features):
        widths["image"] = features.shape[1]
    store = create(widths)
    padded = np.vstack([features, np.full((1, features.shape[1]), np.nan, np.float32)])  # [-1]: no picture
    pictures = bank.image_rows
    for start in range(0, len(bank), _POINTS):
        rows = np.arange(start, min(start + _POINTS, len(bank)))
        # Vectors takes a row of NaN for a point without a picture.
        with_image = {"image": padded[pictures[rows]]} if len(features) else {}
        solved = rows[:, None] < bank.examples
        both = {"mention": np.where(solved, mentions[rows], np.nan)}
        if "name" in widths:
            both["name"] = np.where(solved, np.nan, mentions[rows])
        store.add(rows, {n: m.astype(np.float32, copy=False) for n, m in (both | with_image).items()})
    store.finish()
    store.close()
    most = Counter(bank.table["mention"].to_pylist()).most_common(1)[0][1]
    multiplicity = dict.fromkeys(("mention", "name"), most)
    if len(features):
        multiplicity["image"] = max(1, int(np.bincount(pictures[pictures >= 0]).max(initial=0)))
    return multiplicity


# Limits on the length of names and examples, in the language model's tokens.


Refusal = Callable[[str], str | None]  # why a name is refused, or None


def longest_name(tokenize: Callable[[list[str]], list[list[int]]], most: int) -> Refusal:
    """Refuses names of more than `most` tokens: a name of thousands would leave no room for a prompt."""

    def refusal(name: str) -> str | None:
        if len(name.encode()) <= most:  # a token has at least a byte
            return None
        count = len(tokenize([name])[0])
        if count <= most:
            return None
        return f"the name {short(name)} has {count:,} tokens, more than bank.longest_name {most:,}"

    return refusal


def example_tokens(tokenizer: Tokenizer, row: dict[str, str], most: int) -> list[int] | None:
    """The tokens of an example (text, mention and target) with its text cut around its mention; None if not
    even mention and target fit into `most`."""
    text, mention = row["text"], row["mention"]

    def piece(part: str) -> str:
        return demonstration_text(part, mention, row["target"])

    part = cut(tokenizer, text, place(mention, text) or (0, 0), most, piece)
    return None if part is None else tokenizer.encode(piece(part), add_special_tokens=False).ids


def cut_message(longer: Sequence[str], most: int) -> str:
    """A build's message about examples that were cut: their ids."""
    more = ", ..." if len(longer) > 3 else ""
    return (
        f"{len(longer):,} examples have more than bank.longest_example {most:,} tokens: their texts were cut "
        f"around the mention ({', '.join(longer[:3])}{more})"
    )


# The examples of the bank: solved documents and the knowledge base's names, encoded.


_KEPT = ["document_id", "text", "mention_id", "mention", "target", "target_id"]
_KEPT += ["image_vector", "mention_vector", "thumbnail", "error"]


def forms(entities: Iterable[Entity]) -> Iterator[tuple[Entity, str]]:
    """Every entity with its name and with each of its aliases."""
    for entity in entities:
        for form in dict.fromkeys([entity["name"], *(entity["aliases"] or ())]):
            yield entity, form


def name_examples(named: Iterable[tuple[Entity, str]]) -> Iterator[pa.Table]:
    """A name or alias of an entity as a document that mentions itself: with it in the prompt, the language
    model has read the name and knows its spelling. (Not in the paper, which shows training mentions only.)"""
    rows: list[Row] = []
    for entity, form in named:
        if len(rows) >= BATCH and entity["id"] != rows[-1]["document_id"]:  # else it is counted twice
            yield pa.Table.from_pylist(rows, DOCUMENT)
            rows = []
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
    if rows:
        yield pa.Table.from_pylist(rows, DOCUMENT)


def encoded(
    workspace: Workspace, config: Config, tables: Iterable[pa.Table], meter: Meter
) -> Iterator[pa.Table]:
    """The documents' mentions, one per row, with their vectors. The first one loads the models."""
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


def usable_demonstrations(table: pa.Table, known: Targets, made: Made) -> list[Row]:
    """The rows that can demonstrate; targets become names of the knowledge base, if it has them."""
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
