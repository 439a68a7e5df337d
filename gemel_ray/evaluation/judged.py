"""Gold mentions and what was answered to each of them.

Links are streamed, and of a link only what judging needs is kept: what a page shows beside it (pictures,
demonstrations, scores) is read again for the mentions it shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.job import results
from gemel_ray.readers import documents
from gemel_ray.storage import Place
from gemel_ray.tables import explode

Key = tuple[str, str]
Row = dict[str, Any]
NIL = "NIL"  # a gold mention's target_id: its entity is known not to be in the knowledge base
_GOLD = ["document_id", "mention_id", "mention", "start", "end", "text"]
_GOLD += ["scene", "target", "target_id", "type"]
_LINK = ["document_id", "mention_id", "status", "entity", "entity_id", "probability", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One gold mention and what was answered; `link` None: not in the output. Of the link's candidates
    `ranked` has the distinct names, best first."""

    gold: Row
    link: Row | None

    @property
    def key(self) -> Key:
        return key(self.gold)

    @property
    def status(self) -> str:
        return self.link["status"] if self.link else "missing"

    @property
    def answer(self) -> str | None:
        """The entity's name; None for nil, an error and a missing link."""
        return self.link["entity"] if self.link else None

    @property
    def nil(self) -> bool:
        """Whether the right answer is that there is no such entity."""
        return self.gold["target"] is None and self.gold.get("target_id") == NIL

    @property
    def right(self) -> bool:
        return self.status == "nil" if self.nil else self.answer == self.gold["target"] is not None

    @property
    def right_id(self) -> bool | None:
        """Whether the answer is the very entity, where several bear its name; None: gold tells no id."""
        identity = self.gold.get("target_id")
        if identity is None or self.nil:
            return None
        return self.link is not None and self.link["entity_id"] == identity

    @property
    def rank(self) -> int | None:
        """Of the target among the candidates, from 1; None: it is not there. Whether the answer was
        held back as nil does not matter."""
        ranked = self.link["ranked"] if self.link else ()
        return ranked.index(self.gold["target"]) + 1 if self.gold["target"] in ranked else None

    @property
    def probability(self) -> float | None:
        """What the run gave its best candidate."""
        return self.link["probability"] if self.link else None


def key(row: Row) -> Key:
    """Of a mention, in gold and in links."""
    return row["document_id"], row["mention_id"]


def gold_mentions(files: Iterable[str], columns: Collection[str] = _GOLD) -> Iterator[Row]:
    """The mentions of documents, one a row, with their targets (None: not known, or NIL), the name of the
    `dataset` that their file tells, and the picture's (`scene`)."""
    for file in files:
        told = {"dataset": dataset(file)}
        for table in documents(file):
            added = table.append_column("status", table["error"]).append_column("scene", _scenes(table))
            exploded = explode(added, ("given",))
            rows = exploded.select([c for c in columns if c in exploded.column_names]).to_pylist()
            yield from (row | told for row in rows if row["mention_id"] is not None)


def _scenes(table: pa.Table) -> pa.Array:
    """What tells a document's picture from others: its key, address or digest; empty without one."""
    names = pc.coalesce(table["image_key"], table["image_address"]).to_pylist()
    digests = (
        hashlib.blake2b(image.as_py(), digest_size=8).hexdigest() if image.is_valid else ""
        for image in table["image"]
    )
    return pa.array([name or digest for name, digest in zip(names, digests, strict=True)], pa.string())


def dataset(file: str) -> str:
    """What stands before the split in a file's name, or in its folder's: wikimel of wikimel-dev.jsonl and
    of wikimel/dev.json."""
    path = PurePosixPath(file)
    stem = path.name.partition(".")[0]
    found = re.sub(r"(^|[-_.])(train|dev|valid(ation)?|test)$", "", stem)
    return found or path.parent.name or stem


def links_of(output: Place, wanted: Collection[Key]) -> dict[Key, Row]:
    """What `output` (written by `gemel-ray link`) answers to the wanted mentions. Raises ValueError when
    there are no links at all."""
    found: dict[Key, Row] = {}
    for table in results.tables(output, [*_LINK, "candidates"]):
        for row in table.to_pylist():
            if key(row) in wanted:
                found[key(row)] = answered(row)
    return found


def answered(link: Row) -> Row:
    """What judging needs of a link."""
    return {name: link[name] for name in _LINK[2:]} | {"ranked": ranked(link)}


def ranked(link: Row) -> tuple[str, ...]:
    """The candidates' distinct names, best first: several entities may bear one name."""
    candidates = link["candidates"] or [link]
    return tuple(dict.fromkeys(c["entity"] for c in candidates if c["entity"] is not None))


def whole_links(output: Place, wanted: Collection[Key]) -> dict[Key, Row]:
    """The wanted links with all that was written of them."""
    return {key(r): r for table in results.tables(output) for r in table.to_pylist() if key(r) in wanted}


def pictures(files: Iterable[str], wanted: Collection[Key]) -> dict[Key, tuple[bytes | None, str | None]]:
    """The wanted mentions' pictures as the gold files have them: bytes or an address."""
    columns = ("document_id", "mention_id", "image", "image_address")
    rows = (row for row in gold_mentions(files, columns) if key(row) in wanted)
    return {key(row): (row["image"], row["image_address"]) for row in rows}
