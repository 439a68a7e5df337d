"""A bank's vectors as they lie in its files: the answers of Qdrant's engine, in one product a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from gemel_ray.config import Config, load
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.hashing import MentionWords
from gemel_ray.knowledge.qdrant import EdgeStore
from gemel_ray.knowledge.vectors import Matrices, Matrix, Ranked, Vectors, empty, settle_ties
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.knowledge.writing import index
from gemel_ray.models.encoders import unit

NAMES = {"mention": "name"}


def random(n: int, width: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def written(mentions: Matrix, examples: int, pictures: Matrix, image_row: list[int], folder: Path) -> Bank:
    """A bank; its vectors are not of unit length, as an imported one's may be."""
    rows = [
        {"id": f"{i}", "text": f"t{i}", "mention": f"m{i}", "target": "T", "tokens": [1], "image_row": r}
        for i, r in enumerate(image_row)
    ]
    table = pa.Table.from_pylist(rows, bank_file.SCHEMA)
    parts = [table.slice(0, examples)], [table.slice(examples)]
    return bank_file.write(*parts, pictures, mentions, folder)


@pytest.fixture
def both(tmp_path: Path) -> tuple[Vectors, Vectors]:
    """One bank's matrices, and Qdrant's engine filled from it: 500 examples, of few directions, and 300
    names; a picture for two thirds, some the same."""
    mentions = 3 * random(40, 16)[np.random.default_rng(1).integers(0, 40, 800)]
    mentions[500:] += random(300, 16, seed=2)
    image_row = [-1 if i % 3 == 0 or i >= 500 else i % 60 for i in range(800)]
    bank = written(mentions, 500, 5 * random(60, 8, seed=3), image_row, tmp_path / "bank")
    stores: list[EdgeStore] = []

    def create(widths: dict[str, int]) -> Vectors:
        stores.append(EdgeStore.create(tmp_path / "edge", widths))
        return Vectors(stores[0])

    index(bank, create)
    most = {"mention": 40, "name": 2, "image": 20}
    return tuple(  # type: ignore[return-value]
        Vectors(store, most, joined=NAMES) for store in (Matrices(bank), EdgeStore.open(tmp_path / "edge"))
    )


def same(one: list[Any], other: list[Any]) -> None:
    assert [h.rows.tolist() for h in one] == [h.rows.tolist() for h in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-6)
        assert (a.rows.dtype, a.scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("held", [1 << 24, 800 * 7])
def test_the_answers_are_those_of_qdrant(
    both: tuple[Vectors, Vectors], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties, rows left out, names beside mentions, pictures, votes and a bonus; in pieces of any size."""
    monkeypatch.setattr("gemel_ray.knowledge.vectors._SCORES", held)
    queries = {"mention": random(150, 16, seed=5), "image": random(150, 8, seed=6)}
    queries["image"][::4] = np.nan
    queries["mention"][::7] = both[0].store._named["mention"].vectors[:22]  # type: ignore[attr-defined]
    without = [list(range(i, 800, 7)) if i % 2 else [] for i in range(150)]

    def bonus(query: int, rows: npt.NDArray[np.int64]) -> Matrix:
        return np.where(rows % 5 == query % 5, np.float32(0.2), np.float32(0))

    ours, qdrants = both
    assert (ours.count(), ours.store.widths) == (qdrants.count(), qdrants.store.widths)
    for limit in (1, 16, 900):
        for name, matrix in queries.items():
            same(ours.search(name, matrix, limit), qdrants.search(name, matrix, limit))
            same(
                ours.search(name, matrix, limit, without, bonus),
                qdrants.search(name, matrix, limit, without, bonus),
            )
        if (
            limit > 16
        ):  # among hundreds of votes some hang on a gap that is a tie to one and none to the other
            continue
        weights = {"image": 0.7}
        same(
            *(
                v.search_fused(queries, limit, without, weights, {"mention": bonus, "image": bonus})
                for v in both
            )
        )


def test_a_workspace_is_searched_where_its_bank_lies(
    workspace: Workspace, workspace_folder: Path, config: Config
) -> None:
    """Below the limit by matrices; from it on, by Qdrant."""
    found = workspace.vectors()
    assert isinstance(found.store, Matrices)
    few = load(None, read_facts(workspace_folder)["settings"], ["vectors.exact_below=10"])
    graph = Workspace.open(workspace_folder, few).vectors()
    assert isinstance(graph.store, EdgeStore)
    exact = Vectors(graph.store, graph.multiplicity, 1_000_000, graph.joined)
    mentions = np.asarray(workspace.bank.mention_vectors)[::3]
    rows = workspace.bank.table["image_row"].to_numpy()[::3]
    pictures = unit(workspace.bank.image_vectors)[rows]
    pictures[rows < 0] = np.nan
    queries = {"mention": mentions, "image": pictures}
    pairs = zip(found.search_fused(queries, 16), exact.search_fused(queries, 16), strict=True)
    alike = [a.rows.tolist() == b.rows.tolist() for a, b in pairs]
    assert sum(alike) > 0.98 * len(alike)  # a gap may be a tie to one and none to the other
    graph.close()


def test_the_bank_s_files_are_shared_not_copied(workspace: Workspace) -> None:
    assert np.shares_memory(
        Matrices(workspace.bank)._named["mention"].vectors, workspace.bank.mention_vectors
    )


def test_ties_are_settled_in_full_lines_and_in_those_without_rows() -> None:
    ranked = Ranked(
        np.array([[4, 2, 9, 1], [-1, -1, -1, -1], [3, -1, -1, -1]]),
        np.array([[0.5, 0.9, 0.5 + 1e-8, 0.1], [-np.inf] * 4, [0.2, *[-np.inf] * 3]]),
    )
    found = settle_ties(ranked, 2)
    assert found.rows.tolist() == [[2, 4, 9], [-1, -1, -1], [3, -1, -1]]  # the tie at place 2 stays whole
    assert found.scores[0, 1] == found.scores[0, 2]
    assert settle_ties(empty(2, 0), 5).rows.shape == (2, 0)


def test_rows_with_all_of_a_text_are_found() -> None:
    words = MentionWords.of(
        ["New York", "the new York Times", "York", "", "Times Square, New York", "newyork"]
    )
    rows = np.array([4, 0, 1, 2, 3, 5])
    for text, expected in {
        "york NEW": [4, 0, 1],
        "Times": [4, 1],
        "New-York, Times!": [4, 1],
        "elsewhere New": [],
        "?!": [],
        "": [],
    }.items():
        assert rows[words.with_all(text, rows)].tolist() == expected
    assert MentionWords.of([]).with_all("York", rows).tolist() == [False] * 6
    assert words.with_all("York", rows[:0]).tolist() == []
