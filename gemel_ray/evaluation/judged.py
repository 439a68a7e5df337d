"""Gold mentions with the answer to each of them.

Links are streamed, and only the columns that judging needs are kept. What a page shows besides (pictures,
demonstrations, scores) is read again for the mentions that it shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.job import results
from gemel_ray.readers import documents
from gemel_ray.records import Row
from gemel_ray.stage import explode
from gemel_ray.storage import Place

Key = tuple[str, str]
NIL = "NIL"  # a gold mention's target_id if no entity of the knowledge base is meant
_GOLD = ["document_id", "mention_id", "mention", "start", "end", "text"]
_GOLD += ["picture_id", "target", "target_id", "type"]
_LINK = ["document_id", "mention_id", "status", "entity", "entity_id", "probability", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One gold mention and its link, None if it is not in the output. The link has the columns that judging
    needs, and the distinct names of its candidates, best first, as `ranked`."""

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
        """The entity's name; None for NIL, an error and a missing link."""
        return self.link["entity"] if self.link else None

    @property
    def nil(self) -> bool:
        """Whether the right answer is NIL."""
        return self.gold["target"] is None and self.gold.get("target_id") == NIL

    @property
    def right(self) -> bool:
        return self.status == "nil" if self.nil else self.answer == self.gold["target"] is not None

    @property
    def right_id(self) -> bool | None:
        """Whether the answer is the right one among the entities of its name; None: gold has no id."""
        identity = self.gold.get("target_id")
        if identity is None or self.nil:
            return None
        return self.link is not None and self.link["entity_id"] == identity

    @property
    def rank(self) -> int | None:
        """The target's rank among the candidates, from 1; None if it is not among them. It does not depend on
        whether a threshold turned the answer into NIL."""
        ranked = self.link["ranked"] if self.link else ()
        return ranked.index(self.gold["target"]) + 1 if self.gold["target"] in ranked else None

    @property
    def probability(self) -> float | None:
        """The probability of the best candidate."""
        return self.link["probability"] if self.link else None


def key(row: Row) -> Key:
    """The key of a mention, in gold and in links."""
    return row["document_id"], row["mention_id"]


def gold_mentions(files: Iterable[str], columns: Collection[str] = _GOLD) -> Iterator[Row]:
    """The mentions of documents, one per row, with their targets (None: not known, or NIL), the `dataset`
    after which their file is named, and the `picture_id`."""
    for file in files:
        named = {"dataset": dataset(file)}
        for table in documents(file):
            pictured = table.append_column("picture_id", _picture_ids(table))
            exploded = explode(pictured.append_column("status", table["error"]), ("given",))
            rows = exploded.select([c for c in columns if c in exploded.column_names]).to_pylist()
            yield from (row | named for row in rows if row["mention_id"] is not None)


def _picture_ids(table: pa.Table) -> pa.Array:
    """What identifies each document's picture: its key, address or digest; empty without a picture."""
    names = pc.coalesce(table["image_key"], table["image_address"]).to_pylist()
    digests = (
        hashlib.blake2b(image.as_py(), digest_size=8).hexdigest() if image.is_valid else ""
        for image in table["image"]
    )
    return pa.array([name or digest for name, digest in zip(names, digests, strict=True)], pa.string())


def dataset(file: str) -> str:
    """The part of a file's name before the split, or its folder's name: wikimel for wikimel-dev.jsonl and for
    wikimel/dev.json."""
    path = PurePosixPath(file)
    stem = path.name.partition(".")[0]
    found = re.sub(r"(^|[-_.])(train|dev|valid(ation)?|test)$", "", stem)
    return found or path.parent.name or stem


def links_of(output: Place, wanted: Collection[Key]) -> dict[Key, Row]:
    """The links of the wanted mentions in `output` (written by `gemel-ray link`). Raises ValueError if there
    are no links at all."""
    found: dict[Key, Row] = {}
    for table in results.tables(output, [*_LINK, "candidates"]):
        for row in table.to_pylist():
            if key(row) in wanted:
                found[key(row)] = for_judging(row)
    return found


def for_judging(link: Row) -> Row:
    """The columns of a link that judging needs."""
    return {name: link[name] for name in _LINK[2:]} | {"ranked": _candidate_names(link)}


def _candidate_names(link: Row) -> tuple[str, ...]:
    """The candidates' distinct names, best first: several entities may have one name."""
    candidates = link["candidates"] or [link]
    return tuple(dict.fromkeys(c["entity"] for c in candidates if c["entity"] is not None))


def whole_links(output: Place, wanted: Collection[Key]) -> dict[Key, Row]:
    """The wanted links with all their columns."""
    return {key(r): r for table in results.tables(output) for r in table.to_pylist() if key(r) in wanted}


def pictures(files: Iterable[str], wanted: Collection[Key]) -> dict[Key, tuple[bytes | None, str | None]]:
    """The pictures of the wanted mentions as the gold files have them: bytes or an address."""
    columns = ("document_id", "mention_id", "image", "image_address")
    rows = (row for row in gold_mentions(files, columns) if key(row) in wanted)
    return {key(row): (row["image"], row["image_address"]) for row in rows}
