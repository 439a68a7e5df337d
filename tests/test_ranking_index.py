"""The ranking's index of names: the same as built in memory, and built in a memory that does not grow."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking import postings, sorting
from gemel_ray.ranking.names import Names
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


def indexed(entities: list[entity_file.Entity], folder: Path, former: Path | None = None) -> None:
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


def test_entities_are_added_to_an_index_without_reading_the_others_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(name_files, "_BATCH", 64)
    monkeypatch.setattr(sorting, "_PAIRS", 500)
    monkeypatch.setattr(postings, "_BLOCK", 100)
    entities = random_names(700)
    indexed(entities[:300], tmp_path / "former")
    indexed(entities, tmp_path / "new")
    read, folded_row = list[str](), name_files._folded

    def seen(entity: entity_file.Entity) -> name_files.NameRow:
        read.append(entity["id"])
        return folded_row(entity)

    monkeypatch.setattr(name_files, "_folded", seen)
    indexed(entities, tmp_path / "added", tmp_path / "former")
    assert differing(tmp_path / "new", tmp_path / "added") == []
    assert read == [str(row) for row in range(256, 700)]  # from the last batch, which was not full


def test_only_entities_that_begin_with_the_former_ones_continue_their_index(tmp_path: Path) -> None:
    entities = random_names(9)
    aliased: entity_file.Entity = {**entities[0], "aliases": ["Ka Lo"]}
    former, more, changed, fewer = (
        entity_file.write(iter(some), tmp_path / f"{number}.arrow")
        for number, some in enumerate((entities[:5], entities, [aliased, *entities[1:]], entities[1:]))
    )
    assert more.begins_with(former)
    assert former.begins_with(former)
    assert not any(others.begins_with(former) for others in (changed, fewer))
    assert not former.begins_with(more)


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
