"""The knowledge base's names and aliases by their words, whole forms, initials and trigrams.

Everything is memory-mapped, and the cost of a query does not grow with the knowledge base: words that very
many entities share are skipped, and so are common trigrams.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.knowledge.entities import Entities, Entity, EntityChanges, compact, replaced
from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking.postings import Postings, PostingsWriter, Rows, WeightedRows, among
from gemel_ray.ranking.sorting import GrowingArray, Pairs
from gemel_ray.ranking.words import folded, initials, stems, trigrams, years

_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),  # folded
        pa.field("aliases", pa.list_(pa.string())),  # folded, without the name
        pa.field("initials", pa.list_(pa.string())),  # of the name
        pa.field("bracket", pa.bool_()),  # whether the name has an addition in brackets: Mercury (planet)
        pa.field("about", pa.list_(pa.string())),  # stems of the description, without the name's
        pa.field("years", pa.list_(pa.int16())),  # in the description, in its order
    ]
)
_FREQUENT = 6_000  # entities that share a word: a more frequent word is skipped
_COUNTED = 60_000  # rows of the rarest trigrams that are counted
_LETTERS = range(3, 7)  # numbers of initials that may be in another order: with fewer, too many match
_ALIKE = 0.3  # share of trigrams in common, at least, of names that are similar
_ROWS = 12_000  # rows of the rarest words that are counted
_BATCH = 65_536
_REMEMBERED = 50_000  # words whose weight is kept


_GRAMS = "grams"  # the index of trigrams


Indexes = dict[str, PostingsWriter]


class NameRow(TypedDict):
    """A row of `_SCHEMA`."""

    name: str
    aliases: list[str]
    initials: list[str]
    bracket: bool
    about: list[str]
    years: list[int]


class Names:
    """The files that `write` made, opened."""

    def __init__(self, folder: Path) -> None:
        self._words, self._forms, self._grams, self._about = (
            Postings.open(folder, name) for name in ("words", "forms", _GRAMS, "about")
        )
        self.batches = pa.ipc.open_file(pa.memory_map(str(folder / "names.arrow"))).read_all().to_batches()
        self._starts = [0, *accumulate(map(len, self.batches))]  # and where the last one ends
        self.word_weight, self.stem_weight = (  # the words of a text are asked for by many candidates
            lru_cache(_REMEMBERED)(partial(self._weight, index)) for index in (self._words, self._about)
        )
        self.sizes = np.load(folder / "sizes.npy", mmap_mode="r")  # trigrams of each name, uint16

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, rows: npt.NDArray[np.int64] | Rows) -> list[NameRow]:
        """Name, aliases and description of these entities."""
        # Slice by slice: a take from many batches costs more, one from the whole table copies it.
        places = [(bisect_right(self._starts, row) - 1, row) for row in rows.tolist()]
        parts = [self.batches[batch].slice(row - self._starts[batch], 1) for batch, row in places]
        found: list[NameRow] = pa.concat_batches(parts).to_pylist() if parts else []
        return found

    def with_name(self, form: str) -> Rows:
        """Entities of exactly this folded name or alias."""
        return self._forms.of(key(form))

    def abbreviated(self, form: str) -> Rows:
        """Entities whose initials are this folded form."""
        return self._forms.of(key(f"initials {form.replace(' ', '')}"))

    def reordered(self, form: str) -> Rows:
        """Entities whose initials are these letters in any order, as in another language: NATO, OTAN."""
        return self._forms.of(key(f"letters {''.join(sorted(form.replace(' ', '')))}"))

    def _weight(self, index: Postings, word: str) -> float:
        """The logarithm of the inverse share of entities with a word, in the name or in the description."""
        return math.log(len(self) / max(1, len(index.of(key(word)))))

    def sharing_words(self, words: Iterable[str]) -> WeightedRows:
        """Entities whose names share words with a folded form, by the weight of these words."""
        return self._weighed(self._words, words)

    def by_description(self, stems: Iterable[str]) -> WeightedRows:
        """Entities whose descriptions share stems with a text, by their weight."""
        return self._weighed(self._about, stems)

    def _weighed(self, index: Postings, words: Iterable[str]) -> WeightedRows:
        lists = sorted((index.of(key(word)) for word in dict.fromkeys(words)), key=len)
        taken = list(_within(_ROWS, (rows for rows in lists if 0 < len(rows) < _FREQUENT)))
        return WeightedRows.summed(taken, [math.log(len(self) / len(rows)) for rows in taken])

    def similar(self, form: str, most: int) -> list[int]:
        """At most `most` entities whose names share many trigrams with a folded form: misspelt ones."""
        grams = trigrams(form)
        lists = sorted((self._grams.of(key(gram)) for gram in grams), key=len)
        taken = list(_within(_COUNTED, lists))
        if not any(map(len, taken)):
            return []
        rows, counts = np.unique(np.concatenate(taken), return_counts=True)
        score = 2 * counts / (self.sizes[rows] + len(grams))
        alike = np.flatnonzero(score > _ALIKE)
        best: list[int] = rows[alike[np.argsort(-score[alike], kind="stable")[:most]]].tolist()
        return best


def _within(most: int, lists: Iterable[Rows]) -> Iterator[Rows]:
    """The first list, and the others as long as all together have at most `most` rows."""
    total = 0
    for at, rows in enumerate(lists):
        total += len(rows)
        if at and total > most:
            return
        yield rows


def write(entities: Entities, folder: Path, former: FormerNames | None = None) -> None:
    """Index the entities into `folder`, in one pass. Memory does not grow with their number. Of entities that
    `former` has, only the words of those with more aliases are collected."""
    folder.mkdir(parents=True, exist_ok=True)
    indexes = {name: PostingsWriter(folder, name, former.pairs(name) if former else ()) for name in _INDEXES}
    sizes, first = GrowingArray(folder / "sizes.npy", np.uint16), 0
    with pa.ipc.new_file(str(folder / "names.arrow"), _SCHEMA) as file:
        table = _BatchedTable(file)
        for rows, lengths in _carried_over(former, entities, indexes) if former else ():
            table.add(rows)
            sizes.add(lengths)
            first += len(rows)
        for batch in entities.table.slice(first).to_batches(max_chunksize=_BATCH):
            rows, lengths = _collected(batch.to_pylist(), np.arange(first, first + len(batch)), indexes)
            table.add(rows)
            sizes.add(lengths)
            first += len(rows)
        table.finish()
    for index in indexes.values():
        index.finish()
    sizes.close()


class FormerNames:
    """The index of the former version, and how the entities follow from that version's."""

    def __init__(self, folder: Path, changes: EntityChanges) -> None:
        self.names, self.changes, self._folder = Names(folder), changes, folder

    def pairs(self, name: str) -> Iterator[Pairs]:
        """What one of the indexes has of entities that stay as they are, by their new rows."""
        left_out = np.union1d(self.changes.gone, self.changes.aliased)
        for block in Postings.open(self._folder, name).blocks():
            kept = block[~among(block["row"], left_out)]
            kept["row"] = self.changes.now(kept["row"])
            if len(kept):
                yield kept


class _BatchedTable:
    """Writes rows, which come in any number, in batches of the same size."""

    def __init__(self, file: pa.RecordBatchFileWriter) -> None:
        self._file, self._waiting = file, _SCHEMA.empty_table()

    def add(self, rows: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, rows])
        while len(self._waiting) >= _BATCH:
            self._file.write_table(compact(self._waiting.slice(0, _BATCH)))
            self._waiting = self._waiting.slice(_BATCH)

    def finish(self) -> None:
        if len(self._waiting):
            self._file.write_table(compact(self._waiting))


def _carried_over(
    former: FormerNames, entities: Entities, indexes: Indexes
) -> Iterator[tuple[pa.Table, npt.NDArray[np.integer]]]:
    """The rows of the former table that stay, and their numbers of trigrams. Only those of entities with more
    aliases are made again, and their words added."""
    changes, start = former.changes, 0
    for batch in former.names.batches:
        end = start + len(batch)
        kept, first = changes.kept(start, end), int(changes.now(np.array(start)))
        rows = pa.Table.from_batches([batch.filter(pa.array(kept))])
        lengths = former.names.sizes[start:end][kept]
        aliased = changes.now(changes.aliased[slice(*np.searchsorted(changes.aliased, (start, end)))])
        if len(aliased):
            new, lengths[aliased - first] = _collected(entities.at(aliased).to_pylist(), aliased, indexes)
            rows = replaced(rows, aliased - first, new)
        yield rows, lengths
        start = end


def _collected(
    entities: Sequence[Entity], numbers: npt.NDArray[np.integer], indexes: Indexes
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of the table for these entities, and their numbers of trigrams. Adds their words, under the
    rows `numbers`."""
    rows = list(map(_folded, entities))
    lengths = {n: _add([words(row) for row in rows], numbers, indexes[n]) for n, words in _INDEXES.items()}
    return pa.Table.from_pylist(rows, _SCHEMA), lengths[_GRAMS]


def _add(
    words: list[Collection[str]], numbers: npt.NDArray[np.integer], index: PostingsWriter
) -> npt.NDArray[np.int64]:
    """Add each entity's words, under the rows `numbers`. Returns how many each has."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    keys = np.fromiter(map(key, chain.from_iterable(words)), np.uint64, int(lengths.sum()))
    index.add(keys, np.repeat(numbers, lengths))
    return lengths


def _folded(entity: Entity) -> NameRow:
    name = folded(entity["name"])
    aliases = dict.fromkeys(map(folded, entity["aliases"] or ()))
    about = stems(folded(entity["description"] or "")) - stems(name)
    return {
        "name": name,
        "aliases": [alias for alias in aliases if alias and alias != name],
        "initials": sorted(initials(entity["name"])),
        "bracket": "(" in entity["name"],
        "about": sorted(about),
        "years": years(entity["description"] or ""),
    }


def _words(entity: NameRow) -> Collection[str]:
    return {word for form in (entity["name"], *entity["aliases"]) for word in form.split()}


def _forms(entity: NameRow) -> Collection[str]:
    short = entity["initials"]
    letters = [f"letters {''.join(sorted(some))}" for some in short if len(some) in _LETTERS]
    return [entity["name"], *entity["aliases"], *(f"initials {some}" for some in short), *letters]


def _grams(entity: NameRow) -> Collection[str]:
    return trigrams(entity["name"])


def _about(entity: NameRow) -> Collection[str]:
    return entity["about"]


_INDEXES: dict[str, Callable[[NameRow], Collection[str]]] = {
    "words": _words,
    "forms": _forms,
    _GRAMS: _grams,
    "about": _about,
}
