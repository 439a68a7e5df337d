"""The rounds whole, over a toy in vLLM's place: its cache keeps tokens, and a row's logits depend on every
token that its blocks hold. A wrong block, slot, copy or order shows as another name."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_growing import same
from test_search import Model, logits_after, make_tree, searched

from gemel_ray.engine.columns import Arena, Mention
from gemel_ray.engine.rounds import Rounds, Search
from gemel_ray.engine.vllm.seam import Seam
from gemel_ray.engine.work import Candidate, TokenPrompt, Usage
from gemel_ray.knowledge.prefix_tree import PrefixTree

BLOCK, BLOCKS, LENGTH = 4, 200, 60
PICTURE = 77.0  # in the place of what a picture's vectors are


class Toy(Seam):
    def __init__(self, tokens: int, rows: int) -> None:
        self.device, self.block, self.length, self.passes = torch.device("cpu"), BLOCK, LENGTH, 0
        self.tokens, self.rows = tokens, rows
        self.cache = torch.full((BLOCKS, BLOCK), torch.nan)
        self.output = torch.empty(0)  # it has logits of some tokens only
        self.alike: list[int] = []  # blocks that all rows of a pass begin with

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, None].float()

    def forward(
        self, embeddings: torch.Tensor, start: Any, count: Any, table: Any, alike: int = 0
    ) -> torch.Tensor:
        """[rows, LENGTH]: the tokens that each row's blocks hold, -1 behind them."""
        assert (table[:, :alike] == table[0, :alike]).all() and (start >= alike * self.block).all()
        self.alike.append(alike)
        assert len(count) <= self.rows and count.sum() <= max(self.tokens, count.max())
        self.passes += 1
        given, read = embeddings[:, 0].split(count.tolist()), torch.full((len(count), LENGTH), -1.0)
        for row, tokens in enumerate(given):
            at = np.arange(start[row], start[row] + count[row])
            self.cache[table[row, at // BLOCK], at % BLOCK] = tokens
        for row, end in enumerate(start + count):
            at = np.arange(end)
            read[row, :end] = self.cache[table[row, at // BLOCK], at % BLOCK]
        return read

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        rows = [tuple(int(t) for t in row if t >= 0) for row in hidden.nan_to_num(99)]
        logits = torch.from_numpy(np.stack([logits_after(0, row) for row in rows]))
        return logits if tokens is None else logits[:, tokens]

    def copy(self, blocks: Any) -> None:
        source, target = blocks.T
        self.cache[target] = self.cache[source].clone()


class Behind(Model):
    """The same model behind a prompt."""

    def __init__(self, tree: PrefixTree, score: str, prompt: list[int]) -> None:
        super().__init__(0, tree, score)
        self.prompt = tuple(prompt)

    def log_probs(self, path: tuple[int, ...]) -> dict[int, float]:
        allowed = self.tree.children(self.tree.walk(path))[1] if self.tree.walk(path) >= 0 else []
        logits = logits_after(0, (*self.prompt, *path))
        over = logits[list(allowed)] if self.score == "tree" else logits
        return {int(t): float(logits[t] - np.logaddexp.reduce(over)) for t in allowed}


class SettledOnce:
    """In the place of a coroutine that waits, and of its event loop."""

    def __init__(self) -> None:
        self.found: list[Candidate] | Exception | None = None
        self._loop = self

    def call_soon_threadsafe(self, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def _set(self, outcome: list[Candidate] | Exception) -> None:
        assert self.found is None, "settled twice"
        self.found = outcome


def prompt(dice: random.Random) -> tuple[TokenPrompt, TokenPrompt, list[int]]:
    """A beginning, of which there are four; what is its own, sometimes with a picture, and sometimes behind a
    text that others have, too; and all its tokens."""
    kind = dice.randrange(4)
    begins = np.arange(kind * 5, dtype=np.int64) % 7
    text = np.arange(dice.randint(17, 22)) * (1 + dice.randrange(2)) % 29
    own = np.array([dice.randrange(29) for _ in range(dice.randint(2, 13))])
    own = np.concatenate([text, own]) if dice.random() < 0.5 else own
    picture = ((1, torch.full((1, 1), PICTURE)),) if dice.random() < 0.5 else ()
    read = np.where((np.arange(len(own)) == 1) & bool(picture), int(PICTURE), own)
    identity = np.where(read == own, own, -2)
    return (
        TokenPrompt(begins, begins),
        TokenPrompt(own, identity, picture),
        [*begins.tolist(), *read.tolist()],
    )


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000), score=st.sampled_from(["tree", "paper"]), width=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 1.0]), columns=st.integers(1, 5), parts=st.integers(1, 2),
    tokens=st.integers(10, 60), blocks=st.integers(40, BLOCKS - 1),
)  # fmt: skip
def test_whoever_else_is_there_and_leaves_each_finds_its_own_names(
    seed: int, score: str, width: int, penalty: float, columns: int, parts: int, tokens: int, blocks: int
) -> None:
    dice, tree = random.Random(seed), make_tree(seed, 40)
    seam, arena = Toy(tokens, 12), Arena(range(1, blocks), BLOCK)
    rounds = Rounds(seam, arena, columns, width, parts=parts)
    searches = [Search(tree, w, penalty, score == "tree") for w in (width, width, 2)]
    asked: list[tuple[Search, Mention, list[int]]] = []
    for _ in range(10):
        beginning, own, read = prompt(dice)
        search = dice.choice(searches)
        if rounds.fits(search, len(beginning), len(own)):
            outcome: Any = SettledOnce()
            names = [leaf for _, leaf in tree.names()]
            judged = tuple(dice.sample(names, dice.choice([0, 0, 1, 9])))
            asked.append((search, Mention(beginning, own, outcome, Usage(), judged), read))
    waiting, left = list(asked), set[int]()
    for _ in range(3000):
        while waiting and dice.random() < 0.6:
            rounds.add(*waiting.pop(0)[:2])
        if dice.random() < 0.1 and len(waiting) < len(asked):
            search, mention, _ = dice.choice(asked[: len(asked) - len(waiting)])
            left.add(id(mention))
            rounds.drop(search, mention)
        if not rounds.busy and not waiting:
            break
        rounds.step()
    assert not rounds.busy
    for search, mention, read in asked:
        found: Any = mention.outcome.found  # type: ignore[attr-defined]
        if found is None:
            assert id(mention) in left
        else:
            model = Behind(tree, score, read)
            expected, _ = searched(model, penalty, None if search.width == 1 else search.width)
            same(found[: len(expected)], expected, 1e-4)
            known = {c.leaf for c in expected}
            others = {tree.walk(path): (total, value) for path, total, value in model.names(penalty)}
            assert {c.leaf for c in found[len(expected) :]} == set(mention.judged) - known
            for candidate in found[len(expected) :]:
                assert (candidate.log_prob, candidate.score) == pytest.approx(
                    others[candidate.leaf], abs=1e-4
                )
    arena.forget()
    assert len(arena._free) == arena.all


def test_a_round_is_a_pass_at_most_where_that_has_room() -> None:
    dice, tree = random.Random(1), make_tree(5, 60)
    seam = Toy(400, 400)
    rounds, search = Rounds(seam, Arena(range(1, BLOCKS), BLOCK), 8, 3), Search(tree, 3, 0.0, True)
    mentions = [Mention(*prompt(dice)[:2], outcome=SettledOnce(), usage=Usage()) for _ in range(30)]  # type: ignore[arg-type]
    for mention in mentions:
        rounds.add(search, mention)
    while rounds.busy:
        rounds.step()
    assert all(isinstance(mention.outcome.found, list) for mention in mentions)  # type: ignore[attr-defined]
    assert seam.passes <= rounds.rounds


def test_a_pass_is_told_what_all_its_rows_begin_with() -> None:
    """Blocks of the beginning that is theirs, none of a pass that reads it or another."""
    tree, own = make_tree(5, 60), np.arange(5)
    seam = Toy(400, 400)
    rounds, search = Rounds(seam, Arena(range(1, BLOCKS), BLOCK), 8, 3), Search(tree, 3, 0.0, True)
    for tokens in ([10, 10, 10], [10, 7], [10, 0]):
        seam.alike.clear()
        for length in tokens:
            begins = np.arange(length)
            outcome: Any = SettledOnce()
            rounds.add(search, Mention(TokenPrompt(begins, begins), TokenPrompt(own, own), outcome, Usage()))
        while rounds.busy:
            rounds.step()
        rounds.arena.forget()
        assert seam.alike[0] == 0  # it reads a beginning
        assert (0 in seam.alike[1:]) == (len(set(tokens)) > 1)
        assert len(set(tokens)) > 1 or set(seam.alike[1:]) == {2}
