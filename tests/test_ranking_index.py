"""The ranking's index of names: the same as built in memory, and built in a memory that does not grow."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge.entities import EntityChanges
from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking import postings, sorting
from gemel_ray.ranking.names import FormerNames, Names
from gemel_ray.ranking.postings import PostingsWriter
from gemel_ray.ranking.words import folded, initials, stems, trigrams

SYLLABLES = ("ka", "lo", "mir", "san", "tor", "é", "Über", "o'", "-", " of ", " ", " ", "(x)")
PAIRS = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), st.integers(0, 9)), max_size=120)


def in_memory(pairs: Iterable[tuple[int, int]], folder: Path, name: str) -> None:
    """The files of an index, by sorting all pairs at once."""
    every = sorted(set(pairs))
    keys, first = np.unique(np.array([k for k, _ in every], np.uint64), return_index=True)
    np.save(folder / f"{name}.keys.npy", keys)
    np.save(folder / f"{name}.offsets.npy", np.append(first, len(every)).astype(np.int64))
    np.save(folder / f"{name}.rows.npy", np.array([row for _, row in every], np.int32))


def differing(one: Path, other: Path) -> list[str]:
    """Files of the first folder that the second does not have with the same bytes."""
    return [f.name for f in one.iterdir() if f.read_bytes() != (other / f.name).read_bytes()]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAIRS, st.integers(1, 20))
def test_an_index_made_of_many_runs_has_the_bytes_of_one_sorted_in_memory(
    tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[int, int]], at_once: int
) -> None:
    monkeypatch.setattr(sorting, "_PAIRS", at_once)
    plain, made = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("made")
    in_memory(pairs, plain, "x")
    postings.write(iter(pairs), made, "x")
    assert differing(plain, made) == []
    assert len(list(made.iterdir())) == 3  # no run is left


def random_names(count: int) -> list[entity_file.Entity]:
    dice = random.Random(0)

    def name() -> str:
        return "".join(dice.choices(SYLLABLES, k=dice.randint(1, 8))).strip() or "Ka"

    return [
        {
            "id": str(row), "name": name(), "aliases": [name() for _ in range(dice.randint(0, 2))],
            "description": f"{name()}, born 19{row % 100:02}" if dice.random() < 0.7 else None,
            "popularity": None, "image": None, "types": None,
        }
        for row in range(count)
    ]  # fmt: skip


WORDS: dict[str, Callable[[entity_file.Entity, list[str]], Iterable[str]]] = {
    "words": lambda entity, forms: {word for form in forms for word in form.split()},
    "forms": lambda entity, forms: [*forms, *short_forms(entity["name"])],
    "grams": lambda entity, forms: trigrams(forms[0]),
    "about": lambda entity, forms: stems(folded(entity["description"] or "")) - stems(forms[0]),
}


def folded_forms(entity: entity_file.Entity) -> list[str]:
    name, *aliases = map(folded, (entity["name"], *(entity["aliases"] or ())))
    return list(dict.fromkeys([name, *filter(None, aliases)]))


def short_forms(name: str) -> Iterable[str]:
    for short in initials(name):
        yield f"initials {short}"
        if 3 <= len(short) <= 6:
            yield f"letters {''.join(sorted(short))}"


def indexed(entities: list[entity_file.Entity], folder: Path, former: FormerNames | None = None) -> None:
    folder.mkdir()
    name_files.write(entity_file.write(iter(entities), folder / "entities.arrow"), folder, former)


def test_an_index_of_random_names_has_the_bytes_of_one_sorted_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entities, plain = random_names(700), tmp_path / "plain"
    monkeypatch.setattr(name_files, "_BATCH", 64)
    monkeypatch.setattr(sorting, "_PAIRS", 500)
    indexed(entities, tmp_path / "made")
    plain.mkdir()
    all_forms = [folded_forms(entity) for entity in entities]
    for name, words in WORDS.items():
        pairs = [(key(w), row) for row, e in enumerate(entities) for w in words(e, all_forms[row])]
        in_memory(pairs, plain, name)
    np.save(plain / "sizes.npy", np.array([len(trigrams(folded(e["name"]))) for e in entities], np.uint16))
    assert differing(plain, tmp_path / "made") == []
    found = Names(tmp_path / "made").rows(np.arange(700))
    assert [row["name"] for row in found] == [folded(e["name"]) for e in entities]


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy hold at most, beyond what they hold before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pairs_of_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sorting, "_PAIRS", 20_000)

    def written(pairs: int) -> None:
        writer, dice = PostingsWriter(tmp_path, "x"), np.random.default_rng(0)
        for _ in range(pairs // 10_000):
            writer.add(dice.integers(0, 5_000, 10_000).astype(np.uint64), dice.integers(0, 2**31, 10_000))
        assert writer.finish() > 0.9 * pairs

    few, many = (peak(partial(written, pairs)) for pairs in (100_000, 1_000_000))
    assert many < 1.2 * few


def test_memory_does_not_grow_with_the_names_of_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (name_files, entity_file):
        monkeypatch.setattr(module, "_BATCH", 500)
    monkeypatch.setattr(sorting, "_PAIRS", 5_000)
    entities = random_names(500)
    indexed(entities, tmp_path / "before")  # fills the caches of words
    few, many = (peak(partial(indexed, entities * n, tmp_path / f"times {n}")) for n in (2, 20))
    assert many < 1.3 * few


def test_only_the_words_of_what_is_new_are_collected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In one step entities are removed from all batches, others get aliases, and more come."""
    monkeypatch.setattr(name_files, "_BATCH", 64)
    monkeypatch.setattr(sorting, "_PAIRS", 500)
    monkeypatch.setattr(postings, "_BLOCK", 100)
    entities, gone, aliased = random_names(700), np.array([0, 63, 70, 299]), np.array([1, 2, 64, 298])
    indexed(entities[:300], tmp_path / "former")
    for row in aliased.tolist():
        entities[row] = {**entities[row], "aliases": [*(entities[row]["aliases"] or ()), "Ka Lo Mir", "Ü"]}
    left = [entity for row, entity in enumerate(entities) if row not in gone]
    indexed(left, tmp_path / "new")
    read, folded_row = list[str](), name_files._folded

    def seen(entity: entity_file.Entity) -> name_files.NameRow:
        read.append(entity["id"])
        return folded_row(entity)

    monkeypatch.setattr(name_files, "_folded", seen)
    indexed(left, tmp_path / "continued", FormerNames(tmp_path / "former", EntityChanges(gone, aliased)))
    assert differing(tmp_path / "new", tmp_path / "continued") == []
    assert sorted(read, key=int) == [str(row) for row in (*aliased, *range(300, 700))]


STEP = st.tuples(st.integers(0, 9), st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.lists(STEP, min_size=1, max_size=4), st.integers(2, 9))
def test_an_index_of_many_versions_has_the_bytes_of_one_made_at_once(
    tmp_path_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    steps: list[tuple[int, set[int], set[int]]],
    size: int,
) -> None:
    """Each step adds entities, removes some of those before, and gives aliases to others."""
    for module, name in ((name_files, "_BATCH"), (sorting, "_PAIRS"), (postings, "_BLOCK")):
        monkeypatch.setattr(module, name, size)
    folder, unused = tmp_path_factory.mktemp("versions"), iter(random_names(100))
    now = list(islice(unused, first))
    indexed(now, folder / "0")
    for number, (more, removed, named) in enumerate(steps):
        gone = sorted(row for row in removed if row < len(now))
        aliased = sorted(row for row in named - removed if row < len(now))
        for row in aliased:
            now[row] = {**now[row], "aliases": [*(now[row]["aliases"] or ()), f"Lo {number} Mir"]}
        now = [entity for row, entity in enumerate(now) if row not in gone] + list(islice(unused, more))
        changes = EntityChanges(np.array(gone, np.int64), np.array(aliased, np.int64))
        indexed(now, folder / str(number + 1), FormerNames(folder / str(number), changes))
    indexed(now, folder / "at once")
    assert differing(folder / "at once", folder / str(len(steps))) == []


@settings(deadline=None)
@given(PAIRS, PAIRS, st.integers(1, 9), st.integers(1, 9))
def test_two_streams_of_pairs_are_merged_in_order(
    one: list[tuple[int, int]], other: list[tuple[int, int]], size: int, other_size: int
) -> None:
    def blocks(pairs: set[tuple[int, int]], size: int) -> Iterator[sorting.Pairs]:
        ascending = np.array(sorted(pairs), sorting.PAIR)
        yield from (ascending[start : start + size] for start in range(0, len(ascending), size))

    first, second = set(one), set(other) - set(one)
    merged = [pair for block in sorting.merged(blocks(first, size), blocks(second, other_size))
              for pair in block.tolist()]  # fmt: skip
    assert merged == sorted(first | second)


def test_only_batches_with_entities_that_are_gone_are_copied() -> None:
    table = pa.Table.from_batches([pa.record_batch({"id": [f"{n}" * 1_000] * 100}) for n in range(1, 9)])
    before = pa.total_allocated_bytes()
    stay = EntityChanges(np.array([0, 150, 151]), np.empty(0, np.int64)).staying(table)
    assert pa.total_allocated_bytes() - before < 1.3 * table.nbytes / 4
    assert stay["id"].to_pylist() == [n for row, n in enumerate(table["id"].to_pylist())
                                      if row not in (0, 150, 151)]  # fmt: skip


def test_entities_that_are_added_fill_the_batches_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A version of many versions has as few batches as one that was built at once."""
    monkeypatch.setattr(entity_file, "_BATCH", 64)
    entities = random_names(300)
    whole, former = (
        entity_file.write(iter(some), tmp_path / f"{len(some)}.arrow") for some in (entities, entities[:150])
    )
    new = pa.Table.from_pylist(entities[150:], entity_file.SCHEMA)
    added = entity_file.save(pa.concat_tables([former.table, new]), tmp_path / "added.arrow")
    assert added.table.equals(whole.table)
    assert [len(batch) for batch in added.table.to_batches()] == [64, 64, 64, 64, 44]
