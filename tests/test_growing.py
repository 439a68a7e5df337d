"""Beams in lock step against the searches of search.py: random trees, random scores, every width."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import VOCABULARY, Model, logits_after, make_tree, searched

from gemel_ray.engine.growing import FlatTree, Growing, RoundResult
from gemel_ray.engine.work import Candidate

CPU = torch.device("cpu")
SCORES, PENALTIES = ["paper", "tree"], [0.0, 0.5, 1.0, 2.0, -0.5]
quick = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 10_000)


class Columns:
    """Models side by side, each in a column for as long as its search runs. What stands in a beam's place is
    kept as its tokens, so that every question can be held against what a cache would have read."""

    def __init__(self, growing: Growing) -> None:
        self.growing, self.free = growing, list(range(growing.columns))
        self.busy: dict[int, Model] = {}
        self.places: dict[tuple[int, int], list[int]] = {}  # by column and place
        self.asked = 0

    def join(self, model: Model) -> int:
        column = self.free.pop(0)
        self.busy[column] = model
        self.places |= {(column, place): [] for place in range(self.growing.width)}
        self.growing.begin(torch.tensor([column]))
        self.answer(column, 0, ())
        return column

    def answer(self, column: int, beam: int, path: tuple[int, ...]) -> None:
        logits = torch.from_numpy(logits_after(self.busy[column].seed, path))[None].double()
        node = torch.tensor([self.busy[column].tree.walk(path)])
        child, _ = self.growing.best(logits, node, VOCABULARY)
        known = self.busy[column].log_probs(path)  # exact, where `best` has the model's float32
        scores = [known.get(int(t), -math.inf) for t in self.growing.tree.token[child[0]]]
        scores = [s if i < len(known) else -math.inf for i, s in enumerate(scores)]
        at = torch.tensor([column]), torch.tensor([beam])
        self.growing.answer(*at, child, torch.tensor([scores], dtype=torch.float64))

    def round(self) -> dict[int, list[Candidate]]:
        """What the columns that are done have found."""
        self.growing.grow()
        said = RoundResult.of(self.growing.packed_result().numpy(), self.growing.width)
        before = dict(self.places)
        for column, beam in zip(*np.nonzero(said.source >= 0), strict=True):
            source = before[column, said.source[column, beam]]
            self.places[column, said.place[column, beam]] = list(source)
        for column, beam in zip(*np.nonzero(said.pending), strict=True):
            self._ask(int(column), int(beam), said)
        ended = [c for c in self.busy if not said.alive[c]]
        for column in ended:
            del self.busy[column]
            self.free.append(column)
        return {c: [Candidate(int(n), p, s) for n, p, s in said.found[c].T if s > -np.inf] for c in ended}

    def _ask(self, column: int, beam: int, said: RoundResult) -> None:
        cached = int(said.cached[column, beam])
        length = cached + int(said.pending[column, beam])
        path = tuple(self.growing.path[column, beam, :length].tolist())
        place = self.places[column, int(said.place[column, beam])]
        assert place[:cached] == list(path[:cached]), "the cache has another beam's tokens"
        self.places[column, int(said.place[column, beam])] = list(path)
        self.answer(column, beam, path)
        self.asked += 1
        sharing = said.place[column][(said.pending[column] > 0)].tolist()
        assert len(sharing) == len(set(sharing)), "two beams in one place"


def searched_in_lock_step(
    models: list[Model], columns: int, width: int, penalty: float, seed: int = 0
) -> tuple[list[list[Candidate]], Columns]:
    """Every model in turn joins when there is room, and sometimes a round later."""
    tree, score = models[0].tree, models[0].score
    growing = Growing(FlatTree(tree, CPU), columns, width, penalty=penalty, renormalise=score == "tree")
    work, dice = Columns(growing), random.Random(seed)
    waiting, numbers, found = list(enumerate(models)), dict[int, int](), dict[int, list[Candidate]]()
    while waiting or work.busy:
        while waiting and work.free and (not work.busy or dice.random() < 0.7):
            number, model = waiting.pop(0)
            numbers[work.join(model)] = number
        found |= {numbers[column]: names for column, names in work.round().items()}
    return [found[i] for i in range(len(models))], work


def same(found: list[Candidate], expected: list[Candidate], tolerance: float = 1e-9) -> None:
    assert [c.leaf for c in found] == [c.leaf for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.log_prob, ours.score) == pytest.approx((theirs.log_prob, theirs.score), abs=tolerance)


@quick
@given(
    seed=seeds, names=st.integers(1, 60), letters=st.integers(1, 12), score=st.sampled_from(SCORES),
    penalty=st.sampled_from(PENALTIES), width=st.integers(1, 8), mentions=st.integers(1, 7),
    columns=st.integers(1, 4),
)  # fmt: skip
def test_every_column_finds_what_the_search_alone_finds(
    seed: int, names: int, letters: int, score: str, penalty: float, width: int, mentions: int, columns: int
) -> None:
    """Whoever else is there, whenever they join; with fewer names than beams, too."""
    tree = make_tree(seed, names, letters)
    models = [Model(seed + i, tree, score) for i in range(mentions)]
    found, _ = searched_in_lock_step(models, columns, width, penalty, seed)
    for model, ours in zip(models, found, strict=True):
        same(ours, searched(model, penalty, None if width == 1 else width)[0])


@pytest.mark.parametrize("score", SCORES)
def test_beams_wider_than_the_vocabulary_find_what_the_search_alone_finds(score: str) -> None:
    tree = make_tree(5, 300, letters=12)
    models = [Model(i, tree, score) for i in range(3)]
    for penalty in (0.0, 1.0):
        found, _ = searched_in_lock_step(models, 2, 64, penalty)
        for model, ours in zip(models, found, strict=True):
            same(ours, searched(model, penalty, 64)[0])


@settings(deadline=None, max_examples=20)
@given(seed=seeds, names=st.integers(1, 60), letters=st.integers(1, 12), width=st.integers(1, 4))
def test_logits_of_the_children_are_enough(seed: int, names: int, letters: int, width: int) -> None:
    tree = make_tree(seed, names, letters)
    growing = Growing(FlatTree(tree, CPU), 1, width, penalty=0.0, renormalise=True)
    inner = [n for n in range(len(tree.token)) if not tree.is_leaf(n)]
    node = torch.tensor(random.Random(seed).choices(inner, k=5))
    logits = torch.from_numpy(logits_after(seed, ())).float() + torch.randn(5, 1)
    tokens = growing.tree.following(node)
    children = {int(t) for n in node.tolist() for t in tree.children(n)[1]}
    assert tokens.tolist() == sorted(children)
    of_all, expected = growing.best(logits, node, VOCABULARY)
    child, scores = growing.best(logits[:, tokens], node, VOCABULARY, tokens=tokens)
    possible = expected > -math.inf
    assert torch.equal(scores, expected)
    assert torch.equal(child[possible], of_all[possible])


def test_what_is_forced_is_not_asked_about() -> None:
    """Nor what stands behind the last fork: fewer questions than beams have tokens."""
    tree = make_tree(3, 50)
    asked = {score: searched_in_lock_step([Model(3, tree, score)], 1, 5, 0.0)[1].asked for score in SCORES}
    assert asked["tree"] < asked["paper"]


def test_a_node_of_one_name_is_single() -> None:
    for seed in range(20):
        tree = make_tree(seed, 40)
        behind = [0] * len(tree.token)
        for path, leaf in tree.names():
            for i in range(len(path) + 1):
                behind[tree.walk(path[:i])] += 1
            assert tree.is_leaf(leaf)
        assert FlatTree(tree, CPU).single.tolist() == [count == 1 for count in behind]


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_break_their_column_alone(fault: float) -> None:
    tree = make_tree(1, 40)
    growing = Growing(FlatTree(tree, CPU), 2, 3, penalty=0.0, renormalise=True)
    growing.begin(torch.tensor([0, 1]))
    logits = torch.from_numpy(np.stack([logits_after(s, ()) for s in (1, 2)]))
    logits[1] = fault
    root = torch.zeros(2, dtype=torch.int64)
    growing.answer(torch.tensor([0, 1]), root, *growing.best(logits, root, growing.tree.fan))
    growing.grow()
    said = RoundResult.of(growing.packed_result().numpy(), 3)
    assert said.broken.tolist() == [False, True]
    assert said.alive.tolist() == [True, False]


def test_a_column_that_ends_early_is_taken_again() -> None:
    """As when a caller leaves: nothing of its beams is left for who comes next."""
    tree = make_tree(7, 60)
    growing = Growing(FlatTree(tree, CPU), 1, 4, penalty=0.0, renormalise=True)
    work = Columns(growing)
    work.join(Model(1, tree, "tree"))
    work.round()
    work.free.append(0)
    work.join(Model(2, tree, "tree"))
    found: dict[int, Any] = {}
    while not found:
        found = work.round()
    same(found[0], searched(Model(2, tree, "tree"), 0.0, 4)[0])
