"""The searches over a made-up language model: against brute force, and against Hugging Face's beam search.

The model is a function from a path of tokens to logits, and the rollouts are what the engine's would be
under it. Hugging Face's rules stand here twice: restated from transformers/generation/utils.py
(`_beam_search`, early_stopping=False), and as transformers' own `generate` over the same model.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from gemel_ray.engine.search import Expansions, beam, exact, greedy
from gemel_ray.engine.work import Candidate, Path, Step, probabilities
from gemel_ray.knowledge.prefix_tree import PrefixTree, build
from gemel_ray.stages.by_rollouts import Prior

VOCABULARY, END = 30, 29
SCORES = ["paper", "tree"]
PENALTIES = [0.0, 0.5, 1.0]
Scored = list[tuple[Path, float, float]]  # a name's tokens, its log-probability, what it is ranked by
quick = settings(deadline=None)


@lru_cache(maxsize=4096)
def logits_after(seed: int, path: Path) -> np.ndarray:
    """The language model: fixed for each path, peaked enough that beams overtake one another."""
    rng = np.random.default_rng([seed, len(path), *path])
    return rng.normal(size=VOCABULARY) * rng.choice([0.5, 2.0, 5.0])


def make_tree(seed: int, count: int, letters: int = 6, longest: int = 6) -> PrefixTree:
    """Some names begin others, some are long and alone, some share all but their last token."""
    rng = random.Random(seed)
    names: list[str] = []
    for _ in range(count):
        start = rng.choice([*names, "", ""])[: rng.randint(0, longest - 1)]
        names.append(start + "".join(rng.choices("abcdefghijkl"[:letters], k=rng.randint(1, longest))))
    with tempfile.TemporaryDirectory() as folder:
        return build(
            names, lambda batch: [[ord(c) - ord("a") for c in n] for n in batch], END, Folder(folder)
        )


class Model:
    """The made-up model under one tree and one way to score."""

    def __init__(self, seed: int, tree: PrefixTree, score: str) -> None:
        self.seed, self.tree, self.score = seed, tree, score

    def log_probs(self, path: Path) -> dict[int, float]:
        """Of the tokens that the tree allows after `path`."""
        logits = logits_after(self.seed, path)
        node = self.tree.walk(path)
        allowed = [int(t) for t in self.tree.children(node)[1]] if node >= 0 else []
        if not allowed:
            return {}
        over = logits[allowed] if self.score == "tree" else logits
        total = math.log(math.fsum(np.exp(over)))
        return {token: float(logits[token]) - total for token in allowed}

    def names(self, penalty: float) -> Scored:
        """Brute force: all names, best first."""
        found = []
        for tokens, _ in self.tree.names():
            path = tuple(tokens)
            log_prob = sum(self.log_probs(path[:i])[t] for i, t in enumerate(path))
            found.append((path, log_prob, log_prob / len(path) ** penalty))
        return sorted(found, key=lambda name: -name[2])


class Engine:
    """What stands for the engine: rollouts as it gives them, and what it was asked."""

    def __init__(self, model: Model, candidates: int) -> None:
        self.model, self.candidates = model, candidates
        self.asked: list[Path] = []
        self.widened: list[Path] = []
        self.told: dict[Path, int] = {}  # and of how many tokens

    async def rollout(self, path: Path, node: int, wide: int = 0) -> list[Step]:
        assert node == self.model.tree.walk(path), "asked at a node that the path does not lead to"
        assert not self.model.tree.is_leaf(node), "asked at the end of a name"
        assert self.told.get(path, 0) < (wide or 1), f"asked again what was told: {path}"
        (self.widened if wide else self.asked).append(path)
        await asyncio.sleep(0)
        steps = []
        while not self.model.tree.is_leaf(self.model.tree.walk(path)):
            best = sorted(self.model.log_probs(path).items(), key=lambda pair: -pair[1])
            best = best[: wide or self.candidates]
            steps.append(Step(tuple(t for t, _ in best), tuple(s for _, s in best)))
            self.told[path] = len(best)
            if wide:
                break
            path = (*path, best[0][0])
        return steps


def searched(
    model: Model, penalty: float, width: int | None, candidates: int | None = None
) -> tuple[list[Candidate], Engine]:
    """Beam search of `width`, or greedy, as the Generate stage calls them."""
    engine = Engine(model, candidates or max(16, 2 * (width or 1)))
    expansions = Expansions(model.tree, engine.rollout, renormalise=model.score == "tree")
    search = (
        greedy(model.tree, expansions, penalty)
        if width is None
        else beam(model.tree, expansions, penalty, width)
    )
    return asyncio.run(search), engine


def same(model: Model, found: list[Candidate], expected: Scored, tolerance: float = 1e-9) -> None:
    """The same names in the same order, with the same numbers."""
    leaves = {path: model.tree.walk(path) for path, _, _ in expected}
    assert [c.leaf for c in found] == [leaves[path] for path, _, _ in expected]
    for candidate, (_, log_prob, score) in zip(found, expected, strict=True):
        assert candidate.log_prob == pytest.approx(log_prob, abs=tolerance)
        assert candidate.score == pytest.approx(score, abs=tolerance)


def by_the_rules(model: Model, penalty: float, width: int) -> tuple[Scored, set[Path]]:
    """Hugging Face's beam search, restated with its fixed number of beams, its -1e9s and its masks.

    Returns what it finds and the paths it goes on from. Rows that stand for no name, which it pads with,
    are left out at the end: a score that has the -1e9 in it.
    """
    never = -1.0e9
    longest = model.tree.depth + 2
    running: list[tuple[Path, float]] = [((), 0.0)] + [((), never)] * (width - 1)
    finished: list[tuple[float, Path, float, bool]] = [(never, (), never, False)] * width
    may_improve, expanded = True, set()
    for length in range(1, longest + 1):
        expanded |= {path for path, total in running if total > never / 2}
        grown = []
        for path, total in running:
            known = model.log_probs(path)
            grown += [((*path, t), total + known.get(t, -math.inf)) for t in range(VOCABULARY)]
        top = sorted(grown, key=lambda g: -g[1])[: 2 * width]
        ended = [path[-1] == END or length == longest for path, _ in top]
        order = sorted(range(len(top)), key=lambda i: -(top[i][1] + never * ended[i]))[:width]
        running = [(top[i][0], top[i][1] + never * ended[i]) for i in order]
        merged = list(finished)
        for i, (path, total) in enumerate(top):
            just_ended = ended[i] and i < width
            score = total / length**penalty + never * (not may_improve) + never * (not just_ended)
            merged.append((score, path, total, just_ended))
        finished = sorted(merged, key=lambda f: -f[0])[:width]
        hoped = running[0][1] / length**penalty
        worst = min(f[0] for f in finished)
        may_improve = may_improve and any(hoped > (worst if f[3] else never) for f in finished)
        if not may_improve or all(ended):
            break
    return [(path, total, score) for score, path, total, _ in finished if score > -1e6], expanded


class Transformer(PreTrainedModel, GenerationMixin):
    """The made-up model in transformers' clothes; the first token is a prompt that nothing depends on."""

    config_class = PretrainedConfig
    _supports_cache_class = False

    def __init__(self, seed: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=VOCABULARY))
        self.seed = seed
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        rows = [logits_after(self.seed, tuple(row[1:])) for row in input_ids.tolist()]
        return CausalLMOutput(logits=torch.tensor(np.stack(rows), dtype=torch.float32)[:, None])

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}


def by_transformers(model: Model, penalty: float, width: int) -> Scored:
    """What GEMEL's own code does: `generate` with the tree as `prefix_allowed_tokens_fn`."""
    tree = model.tree

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        node = tree.walk(ids.tolist()[1:])
        return [int(t) for t in tree.children(node)[1]] if node >= 0 and not tree.is_leaf(node) else [END]

    out = Transformer(model.seed).generate(
        torch.tensor([[0]]), num_beams=width, num_return_sequences=width, do_sample=False,
        early_stopping=False, length_penalty=penalty, max_new_tokens=tree.depth + 2, use_cache=False,
        eos_token_id=END, pad_token_id=VOCABULARY - 2, prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = []
    for ids, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        if score > -1e6:
            path = tuple(ids[1 : ids.index(END, 1) + 1])
            found.append((path, score * len(path) ** penalty, score))
    return found


seeds = st.integers(0, 2**31)
scores = st.sampled_from(SCORES)
penalties = st.sampled_from(PENALTIES)


@quick
@given(seed=seeds, count=st.integers(1, 40), score=scores, penalty=penalties)
def test_a_beam_as_wide_as_the_tree_is_brute_force(seed: int, count: int, score: str, penalty: float) -> None:
    model = Model(seed, make_tree(seed, count), score)
    found, _ = searched(model, penalty, width=len(model.tree))
    same(model, found, model.names(penalty))


@quick
@given(
    seed=seeds, count=st.integers(1, 60), score=scores, penalty=penalties, width=st.integers(1, 6),
    letters=st.integers(1, 12),
)  # fmt: skip
def test_beam_follows_hugging_face_s_rules(
    seed: int, count: int, score: str, penalty: float, width: int, letters: int
) -> None:
    model = Model(seed, make_tree(seed, count, letters), score)
    found, engine = searched(model, penalty, width)
    expected, expanded = by_the_rules(model, penalty, width)
    same(model, found, expected)
    assert set(engine.asked) <= expanded  # nothing is asked that those rules would not look at


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("width", [2, 3, 4, 5, 6])  # one beam is greedy search to transformers
def test_beam_finds_what_transformers_finds(width: int, penalty: float) -> None:
    for seed in range(6):
        model = Model(seed, make_tree(seed, 50), "paper")
        expected = by_transformers(model, penalty, width)
        assert len(expected) == width
        same(model, searched(model, penalty, width)[0], expected, tolerance=1e-4)
        same(model, searched(model, penalty, width)[0], by_the_rules(model, penalty, width)[0])


def test_the_rules_stop_early_somewhere() -> None:
    """Guards the comparisons: among their cases are some where stopping early changes the answer."""
    changed = 0
    for seed in range(200):
        model = Model(seed, make_tree(seed, 50), "paper")
        best = {path for path, _, _ in model.names(0.0)[:3]}
        changed += {path for path, _, _ in by_the_rules(model, 0.0, 3)[0]} != best
    assert changed > 10


@quick
@given(seed=seeds, count=st.integers(1, 5), score=scores, penalty=penalties, width=st.integers(2, 12))
def test_fewer_names_than_beams_are_given_once_each(
    seed: int, count: int, score: str, penalty: float, width: int
) -> None:
    model = Model(seed, make_tree(seed, count), score)
    found, _ = searched(model, penalty, width + len(model.tree))
    leaves = [leaf for _, leaf in model.tree.names()]
    assert sorted(c.leaf for c in found) == sorted(leaves)
    assert all(math.isfinite(c.log_prob) and math.isfinite(c.score) for c in found)


@quick
@given(seed=seeds, count=st.integers(1, 60), score=scores, penalty=penalties, width=st.integers(1, 6))
def test_candidates_are_names_best_first(
    seed: int, count: int, score: str, penalty: float, width: int
) -> None:
    model = Model(seed, make_tree(seed, count), score)
    found, _ = searched(model, penalty, width)
    assert 1 <= len(found) <= width
    assert len({c.leaf for c in found}) == len(found)
    assert all(a.score >= b.score for a, b in pairwise(found))
    right = {model.tree.walk(path): (log_prob, score) for path, log_prob, score in model.names(penalty)}
    for candidate in found:
        assert (candidate.log_prob, candidate.score) == pytest.approx(right[candidate.leaf])


@quick
@given(seed=seeds, count=st.integers(1, 60), score=scores, penalty=penalties)
def test_greedy_takes_the_best_token_of_every_step(seed: int, count: int, score: str, penalty: float) -> None:
    model = Model(seed, make_tree(seed, count), score)
    path, total = (), 0.0
    while not model.tree.is_leaf(model.tree.walk(path)):
        known = model.log_probs(path)
        best = max(known, key=lambda token: known[token])
        path, total = (*path, best), total + known[best]
    found, engine = searched(model, penalty, width=None)
    same(model, found, [(path, total, total / len(path) ** penalty)])
    assert len(engine.asked) <= 1  # one rollout is the whole of it


@quick
@given(seed=seeds, count=st.integers(1, 60), score=scores, width=st.integers(1, 6))
def test_the_engine_is_asked_once_about_a_node_at_most(seed: int, count: int, score: str, width: int) -> None:
    """That it is never asked what it has told already, the engine of this test asserts itself."""
    model = Model(seed, make_tree(seed, count), score)
    _, engine = searched(model, 0.0, width)
    _, expanded = by_the_rules(model, 0.0, width)
    assert len(set(engine.asked)) == len(engine.asked) <= len(expanded)
    if score == "tree":  # what is certain is not asked
        assert all(len(model.log_probs(path)) > 1 for path in engine.asked)


def test_rollouts_spare_requests() -> None:
    """A rollout tells of a whole greedy path: fewer requests than nodes, or it would be in vain."""
    asked = nodes = 0
    for seed in range(40):
        model = Model(seed, make_tree(seed, 50), "paper")
        asked += len(searched(model, 0.0, 5)[1].asked)
        nodes += len(by_the_rules(model, 0.0, 5)[1])
    assert asked < 0.75 * nodes


@pytest.mark.parametrize("score", SCORES)
def test_a_tree_of_one_name_is_searched(score: str) -> None:
    model = Model(1, make_tree(3, 1), score)
    for width in (None, 1, 5):
        found, engine = searched(model, 1.0, width)
        same(model, found, model.names(1.0))
        assert len(engine.asked) == (0 if score == "tree" else 1)


def test_a_node_wider_than_what_the_engine_reports_is_searched() -> None:
    """The root has more children than are reported: the best 2 x width of them are all a beam needs."""
    names = [chr(ord("a") + i) + chr(ord("a") + j) for i in range(26) for j in range(0, 26, 5)]
    with tempfile.TemporaryDirectory() as folder:
        tree = build(names, lambda batch: [[ord(c) - 97 for c in n] for n in batch], END, Folder(folder))
    for seed in range(10):
        model = Model(seed, tree, "paper")
        for width in (2, 5):
            found, _ = searched(model, 0.0, width, candidates=2 * width)
            same(model, found, by_the_rules(model, 0.0, width)[0])


@pytest.mark.parametrize("search", ["greedy", "beam", "exact"])
def test_an_engine_without_finite_numbers_is_an_error_not_an_answer(search: str) -> None:
    model = Model(0, make_tree(0, 20), "paper")

    async def broken(path: Path, node: int, wide: int = 0) -> list[Step]:
        return [Step((), ())]

    expansions = Expansions(model.tree, broken, renormalise=False)
    run: dict[str, Callable[[], Any]] = {
        "greedy": lambda: greedy(model.tree, expansions, 0.0),
        "beam": lambda: beam(model.tree, expansions, 0.0, 3),
        "exact": lambda: exact(model.tree, expansions, 0.0, 3),
    }
    with pytest.raises(RuntimeError, match="not finite"):
        asyncio.run(run[search]())


# Exact search


def searched_exactly(
    model: Model, penalty: float, count: int, candidates: int = 16
) -> tuple[list[Candidate], Engine]:
    engine = Engine(model, candidates)
    expansions = Expansions(model.tree, engine.rollout, renormalise=model.score == "tree")
    return asyncio.run(exact(model.tree, expansions, penalty, count)), engine


@quick
@given(
    seed=seeds, names=st.integers(1, 60), letters=st.integers(1, 12), score=scores,
    penalty=st.sampled_from([*PENALTIES, 2.0, -0.5]), count=st.integers(1, 8), candidates=st.integers(1, 16),
)  # fmt: skip
def test_exact_is_brute_force(
    seed: int, names: int, letters: int, score: str, penalty: float, count: int, candidates: int
) -> None:
    """Also where the engine reports so few tokens a step that the best names are not among them."""
    model = Model(seed, make_tree(seed, names, letters), score)
    found, _ = searched_exactly(model, penalty, count, candidates)
    same(model, found, model.names(penalty)[:count])


class Coarse(Model):
    """Its log-probabilities are whole numbers, so that names tie and sums are exact."""

    def log_probs(self, path: Path) -> dict[int, float]:
        return {t: min(-1.0, round(v)) for t, v in super().log_probs(path).items()}


@quick
@given(seed=seeds, count=st.integers(1, 6), candidates=st.integers(1, 16))
def test_of_equal_names_exact_takes_the_first_of_the_tree(seed: int, count: int, candidates: int) -> None:
    model = Coarse(seed, make_tree(seed, 40), "paper")
    found, _ = searched_exactly(model, 0.0, count, candidates)
    order = sorted((-log_prob, model.tree.walk(path)) for path, log_prob, _ in model.names(0.0))
    assert [(-c.score, c.leaf) for c in found] == order[:count]


def test_names_tie_somewhere() -> None:
    """Guards the test above: the last name wanted and the first one left out have the same score."""
    tied = 0
    for seed in range(50):
        scores = [score for _, _, score in Coarse(seed, make_tree(seed, 40), "paper").names(0.0)]
        tied += scores[2] == scores[3]
    assert tied > 5


def test_exact_finds_what_a_beam_misses() -> None:
    better = 0
    for seed in range(100):
        model = Model(seed, make_tree(seed, 50), "tree")
        missed = searched(model, 0.0, 3)[0]
        found = searched_exactly(model, 0.0, 3)[0]
        assert all(e.score >= b.score - 1e-9 for e, b in zip(found, missed, strict=False))
        better += {c.leaf for c in found} != {c.leaf for c in missed}
    assert better > 10


class Peaked(Model):
    """At every step one token has almost all the probability."""

    def log_probs(self, path: Path) -> dict[int, float]:
        known = super().log_probs(path)
        total = math.log(math.fsum(math.exp(20 * v) for v in known.values())) if known else 0.0
        return {token: 20 * v - total for token, v in known.items()}


def test_exact_asks_little_more_than_greedy_where_the_model_is_sure() -> None:
    asked = [searched_exactly(Peaked(s, make_tree(s, 50), "tree"), 0.0, 1)[1] for s in range(100)]
    assert sum(len(engine.asked) for engine in asked) < 1.2 * len(asked)
    assert not any(engine.widened for engine in asked)


@quick
@given(seed=seeds, names=st.integers(1, 60), candidates=st.integers(2, 16))
def test_for_one_name_exact_asks_about_nothing_that_could_not_win(
    seed: int, names: int, candidates: int
) -> None:
    model = Model(seed, make_tree(seed, names), "tree")
    (best,), engine = searched_exactly(model, 0.0, 1, candidates)
    for path in [*engine.asked, *engine.widened]:
        reached = sum(model.log_probs(path[:i])[t] for i, t in enumerate(path))
        assert reached >= best.log_prob - 1e-9


def test_a_search_that_is_cut_says_so() -> None:
    model = Model(1, make_tree(1, 60), "paper")
    whole, engine = searched_exactly(model, 0.0, 5, candidates=2)
    needed = len(engine.asked) + len(engine.widened)
    assert needed > 10
    for requests, cut in ((1, True), (needed, False)):
        expansions = Expansions(model.tree, Engine(model, 2).rollout, renormalise=False)
        found = asyncio.run(exact(model.tree, expansions, 0.0, 5, requests))
        assert expansions.cut == cut
        assert found
        assert (found == whole) == (not cut)


# The prior


@quick
@given(
    seed=seeds, names=st.integers(1, 40), score=scores, penalty=penalties, weight=st.sampled_from([0.5, 1.0])
)
def test_the_prior_is_taken_off_the_score(
    seed: int, names: int, score: str, penalty: float, weight: float
) -> None:
    model = Model(seed, make_tree(seed, names), score)
    neutral = Engine(Model(seed + 1, model.tree, score), 1)
    prior = Prior(model.tree, neutral.rollout, renormalise=score == "tree")
    found, _ = searched_exactly(model, penalty, 5)

    async def twice() -> list[list[Candidate]]:
        return [await prior.corrected(found, weight, penalty) for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first == second  # and the engine was not asked again: it asserts that itself
    without = {path: log_prob for path, log_prob, _ in neutral.model.names(0.0)}
    expected = [
        (path, log_prob, (log_prob - weight * without[path]) / len(path) ** penalty)
        for path, log_prob, _ in model.names(penalty)[:5]
    ]
    same(model, first, sorted(expected, key=lambda name: -name[2]), tolerance=1e-5)


def test_the_prior_changes_the_order() -> None:
    changed = 0
    for seed in range(20):
        model = Model(seed, make_tree(seed, 40), "tree")
        prior = Prior(model.tree, Engine(Model(seed + 1, model.tree, "tree"), 1).rollout, renormalise=True)
        found, _ = searched_exactly(model, 0.0, 5)
        changed += asyncio.run(prior.corrected(found, 1.0, 0.0))[0].leaf != found[0].leaf
    assert changed > 2


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=10))
def test_probabilities_are_a_softmax(values: list[float]) -> None:
    found = probabilities([Candidate(i, v, v) for i, v in enumerate(values)])
    assert sum(found) == pytest.approx(1.0)
    exact = torch.softmax(torch.tensor(values, dtype=torch.float64), 0).tolist()
    assert found == pytest.approx(exact, abs=1e-12)
