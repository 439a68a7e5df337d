"""Neighbours' votes and their interpolation with what a search found, on names by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import live
import numpy as np
import pyarrow as pa
import pytest

import gemel_ray
from gemel_ray.config import load
from gemel_ray.engine.work import Candidate
from gemel_ray.knowledge import bank as banks
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.prefix_tree import PrefixTree, build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.stages.answering import Answer, Names, interpolated
from gemel_ray.stages.retrieve import TEMPERATURE, votes

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
def named(tree: PrefixTree, tmp_path: Path) -> Names:
    rows = [
        {"id": str(i), "text": t, "mention": t, "target": t, "tokens": [1], "image_row": -1}
        for i, t in enumerate(["Apple", "Apple", "Paris", "Atlantis"])
    ]
    table = pa.Table.from_pylist(rows, banks.SCHEMA)
    none = np.empty((0, 1), np.float32)
    bank = banks.write([table], [], none, np.ones((4, 1), np.float32), tmp_path)
    return Names(tree, entities_of(NAMES), bank, by_byte)


def entities_of(names: list[str]) -> Entities:
    return Entities(pa.table({"id": [f"Q{i}" for i in range(len(names))], "name": names}))


def test_votes_for_one_name_add_up(tree: PrefixTree, named: Names) -> None:
    found = named.shares([0, 1, 2], [0.5, 0.2, 0.3])
    assert found == pytest.approx({leaf(tree, "Apple"): 0.7, leaf(tree, "Paris"): 0.3})


def test_of_one_name_s_entities_the_ranker_s_likeliest_is_the_answer(named: Names, tmp_path: Path) -> None:
    """Those that it does not know follow in their order; the probability is the name's."""
    shared = ["Apple", "Paris", "Apple", "Apple", "Apple"]
    twins = Names(build(shared, by_byte, END, tmp_path), entities_of(shared), named._bank, by_byte)
    found = [Candidate(twins.leaf("Apple"), -0.1, -0.1)]
    assert twins.best_bearer(found[0].leaf, {3: -0.1, 4: -2.0, 1: 0.0}) == 3
    other = [Candidate(twins.leaf("Paris"), -0.2, -0.2)]
    answers = [Answer(other, 0.0), Answer(found, 0.0, {3: -0.1, 4: -2.0}), Answer(found, 2.0)]
    first, row, nil = twins.answers(answers)
    assert first["entity_id"] == f"Q{shared.index('Paris')}"
    assert (row["entity_id"], row["probability"], row["status"]) == ("Q3", 1.0, "linked")
    assert [c["entity_id"] for c in row["candidates"]] == ["Q3", "Q4", "Q0", "Q2"]
    assert nil["entity"] is None


# Two flags of each of two countries, each flag nearer to its like, under two words that say nothing.
LOOKS = np.array([[1, 0.1, 0], [1, 0, 0.1], [0.1, 1, 0], [0, 1, 0.1]], np.float32)
WORDS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0.05], [0, 1, 0.05]], np.float32)


def bank_of(folder: Path, targets: list[str], words: Any, looks: Any, pictured: bool = True) -> banks.Bank:
    rows = [
        {
            "id": str(i),
            "text": str(i),
            "mention": "m",
            "target": t,
            "tokens": [1],
            "image_row": i if pictured else -1,
        }
        for i, t in enumerate(targets)
    ]
    return banks.write([pa.Table.from_pylist(rows, banks.SCHEMA)], [], looks, words, folder)


def test_votes_fall_with_the_distance(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, ["A", "B"], WORDS[:2], LOOKS[:2], pictured=False)
    found = votes(bank, np.array([0, 1]), np.array([1, 1 - TEMPERATURE], np.float32), LOOKS[0])
    assert found == pytest.approx(np.array([1, math.exp(-1)]) / (1 + math.exp(-1)))


def test_pictures_decide_where_they_tell_the_examples_apart_and_mentions_do_not(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, ["A", "A", "B", "B"], WORDS, LOOKS)
    like_b, like_a_in_words = LOOKS[2], WORDS @ WORDS[0]
    found = votes(bank, np.arange(4), like_a_in_words, like_b)
    assert found.sum() == pytest.approx(1)
    assert found[2:].sum() > 0.9  # B, though the mention's words are nearest to an A


def test_mentions_decide_where_they_tell_the_examples_apart_and_pictures_do_not(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, ["A", "A", "B", "B"], LOOKS, WORDS)
    found = votes(bank, np.arange(4), LOOKS @ LOOKS[0], WORDS[2])
    assert found[:2].sum() > 0.9


def test_an_example_without_a_target_has_no_vote(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, ["A"], WORDS[:1], LOOKS[:1])
    assert len(votes(bank, np.empty(0, np.int64), np.empty(0, np.float32), LOOKS[0])) == 0
    assert votes(bank, np.array([0]), np.ones(1, np.float32), LOOKS[0]) == pytest.approx([1])


def test_a_target_that_is_no_name_has_no_vote(tree: PrefixTree, named: Names) -> None:
    assert named.shares([3, 2], [1.0, 0.5]) == {leaf(tree, "Paris"): 1.0}
    assert named.shares([3], [1.0]) == named.shares([], []) == {}


FOUND = [Candidate(1, math.log(0.5), 0.0), Candidate(2, math.log(0.25), 0.0)]


def test_the_score_is_the_logarithm_of_both_probabilities() -> None:
    ranked = interpolated(FOUND, {2: 0.75, 3: 0.25}, 0.4, 5)
    expected = {2: 0.6 * 0.25 + 0.4 * 0.75, 1: 0.6 * 0.5, 3: 0.4 * 0.25}
    assert [c.leaf for c in ranked] == list(expected)
    assert [math.exp(c.score) for c in ranked] == pytest.approx(list(expected.values()))


def test_no_more_candidates_are_given_than_were_asked_for() -> None:
    assert [c.leaf for c in interpolated(FOUND, {2: 0.75, 3: 0.25}, 0.4, 1)] == [2]


def test_without_neighbours_the_order_stays() -> None:
    assert [c.leaf for c in interpolated(FOUND, {}, 0.5, 5)] == [1, 2]


def test_with_full_weight_only_neighbours_are_candidates() -> None:
    assert [c.leaf for c in interpolated(FOUND, {3: 1.0}, 1.0, 5)] == [3]


def test_what_is_too_unlikely_for_a_float_keeps_its_order() -> None:
    unlikely = [Candidate(1, -2000.0, -2000.0), Candidate(2, -2001.0, -2001.0)]
    assert interpolated(unlikely, {}, 0.5, 5) == unlikely


ALONE = {"generate.neighbour_weight": 1, "generate.ranking": 1, "retrieve.demonstrations": 4}
DOCUMENT = {"text": "Honda opened an office.", "mentions": ["Honda"]}


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever starts an engine fails."""
    monkeypatch.setattr("gemel_ray.stages.generating.Engine", None)


@pytest.mark.usefixtures("no_engine")
def test_votes_alone_link_without_a_language_model(workspace_folder: Path) -> None:
    with gemel_ray.Linker(workspace_folder, ALONE) as linker:
        (found,) = linker.link_many([DOCUMENT])
    assert (found["status"], found["entity"]) == ("linked", "Honda")
    others = [math.exp(c["score"]) for c in found["candidates"]]  # those of the four examples
    assert (found["probability"], sum(others)) == pytest.approx((others[0], 1.0), abs=1e-5)
    with gemel_ray.Linker(workspace_folder, ALONE | {"retrieve.demonstrations": 0}) as linker:
        (row,) = linker.link_many([DOCUMENT])
    assert (row["status"], row["entity"], row["candidates"], row["error"]) == ("nil", None, [], None)


@pytest.mark.usefixtures("no_engine")
def test_the_endpoint_answers_without_a_language_model(workspace_folder: Path) -> None:
    settings = [f"{name}={value}" for name, value in ALONE.items()]
    config = load(None, read_facts(workspace_folder)["settings"], settings)
    workspace = Workspace.open(workspace_folder, config)
    work = config.generate.start(workspace, config.line.stages)
    with live.served(config, workspace, work) as url, gemel_ray.Client(url) as client:
        (sure,) = client.link(**DOCUMENT)
        (cautious,) = client.link(**DOCUMENT, candidates=2, nil_threshold=1.0)
        with pytest.raises(gemel_ray.ServerError, match="nil_threshold"):
            client.link(**DOCUMENT, candidates=1, nil_threshold=0.5)
    assert (sure["status"], sure["entity"]) == ("linked", "Honda")
    assert (cautious["status"], cautious["entity"], len(cautious["candidates"])) == ("nil", None, 2)
