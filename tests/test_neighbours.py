"""Neighbours' votes and their interpolation with what a search found, on names by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gemel_ray.engine.rescoring import TEMPERATURE, Neighbours, interpolated
from gemel_ray.engine.work import Candidate
from gemel_ray.knowledge import bank as banks
from gemel_ray.knowledge.prefix_tree import PrefixTree, build

END = 10
NAMES = ["Apple", "Apple Music", "Paris"]


def by_byte(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: Any) -> PrefixTree:
    return build(NAMES, by_byte, END, tmp_path_factory.mktemp("tree"))


def leaf(tree: PrefixTree, name: str) -> int:
    return tree.walk([*name.encode(), END])


@pytest.fixture
def neighbours(tree: PrefixTree, tmp_path: Path) -> Neighbours:
    rows = [
        {"id": str(i), "text": t, "mention": t, "target": t, "tokens": [1], "image_row": -1}
        for i, t in enumerate(["Apple", "Apple", "Paris", "Atlantis"])
    ]
    table = pa.Table.from_pylist(rows, banks.SCHEMA)
    none = np.empty((0, 1), np.float32)
    return Neighbours(tree, banks.write([table], [], none, np.ones((4, 1), np.float32), tmp_path), by_byte)


def test_votes_fall_with_the_distance_and_add_up(tree: PrefixTree, neighbours: Neighbours) -> None:
    near, far = 1.0, 1.0 - TEMPERATURE
    found = neighbours.shares([0, 1, 2], [near, far, near])
    whole = 2 + math.exp(-1)
    expected = {leaf(tree, "Apple"): (1 + math.exp(-1)) / whole, leaf(tree, "Paris"): 1 / whole}
    assert found == pytest.approx(expected)


def test_a_target_that_is_no_name_has_no_vote(tree: PrefixTree, neighbours: Neighbours) -> None:
    assert neighbours.shares([3, 2], [1.0, 0.5]) == {leaf(tree, "Paris"): 1.0}
    assert neighbours.shares([3], [1.0]) == neighbours.shares([], []) == {}


FOUND = [Candidate(1, math.log(0.5), 0.0), Candidate(2, math.log(0.25), 0.0)]


def test_the_score_is_the_logarithm_of_both_probabilities() -> None:
    ranked = interpolated(FOUND, {2: 0.75, 3: 0.25}, 0.4, 5)
    expected = {2: 0.6 * 0.25 + 0.4 * 0.75, 1: 0.6 * 0.5, 3: 0.4 * 0.25}
    assert [c.leaf for c in ranked] == list(expected)
    assert [math.exp(c.score) for c in ranked] == pytest.approx(list(expected.values()))


def test_no_more_than_were_asked_for() -> None:
    assert [c.leaf for c in interpolated(FOUND, {2: 0.75, 3: 0.25}, 0.4, 1)] == [2]


def test_without_neighbours_the_order_stays() -> None:
    assert [c.leaf for c in interpolated(FOUND, {}, 0.5, 5)] == [1, 2]


def test_with_full_weight_only_neighbours_are_candidates() -> None:
    assert [c.leaf for c in interpolated(FOUND, {3: 1.0}, 1.0, 5)] == [3]


def test_what_is_too_unlikely_for_a_float_keeps_its_order() -> None:
    unlikely = [Candidate(1, -2000.0, -2000.0), Candidate(2, -2001.0, -2001.0)]
    assert interpolated(unlikely, {}, 0.5, 5) == unlikely
