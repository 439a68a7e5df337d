"""Fits the ranker on the examples of a workspace; the features of each come from the others, never itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.ranking import context
from gemel_ray.ranking.context import TrainingExample
from gemel_ray.ranking.evidence import Collector
from gemel_ray.ranking.examples import Examples
from gemel_ray.ranking.features import GROUPS, Group, Question, bend, feature_names, fits, of_described
from gemel_ray.ranking.leaving_out import LeftOut
from gemel_ray.ranking.ranker import FAR, NETWORK, Ranker

Matrix = npt.NDArray[np.float32]
TrainRetrieval = Callable[[Sequence[TrainingExample]], list[Matrix]]
Neighbours = Callable[[npt.NDArray[np.int64]], Iterator[tuple[npt.NDArray[np.int64], Matrix]]]

SAMPLE = 16_000  # examples it is fitted on, at most
_HIDDEN, _BATCH, _EPOCHS, _RATE = 96, 128, 10, 6e-3
_FURTHER_EPOCHS, _FURTHER_RATE = 5, 3e-3  # where a ranker is fitted further,
_DRAWN = 0.03  # and the weight of the squared distances from its weights
_STILL = 1e-3  # a feature whose standard deviation is less is ignored
_STEPS = 80  # at least, of few examples
_BENT = "description fits bent"  # and, after it, the difference to the greatest
_NETWORKS, _HELD_OUT = 3, 0.1  # each is trained without another tenth of the sample, on which it is tested


@dataclass(frozen=True)
class Prepared:
    """Examples with the features of their candidates in these groups, and the bend (context.py). Preparing
    takes half of the time of a fit, and serves several."""

    judged: Sequence[TrainingExample]
    groups: tuple[Group, ...]
    bend: Matrix
    about: npt.NDArray[np.float16]  # vectors of the entities' descriptions

    def without(self, names: Collection[str]) -> Prepared:
        """The examples without the groups of these names."""
        groups = tuple(group for group in self.groups if group.name not in names)
        kept = [i for i, name in enumerate(feature_names(self.groups)) if name in feature_names(groups)]
        judged = [
            replace(one, evidence=replace(one.evidence, features=one.evidence.features[:, kept]))
            for one in self.judged
        ]
        bend = self.bend if _BENT in feature_names(groups) else context.learn_bend(self.about, ())
        return Prepared(judged, groups, bend, self.about)


def prepared(collector: Collector, neighbours: Neighbours, seed: int = 0, *, bends: bool = True) -> Prepared:
    """Prepare the examples. `neighbours` returns, for rows of the bank, their nearest other rows and the
    cosines. `seed` gives the order of the examples. `bends`: a bend is learned from them."""
    judged, about = list(_judged(collector, neighbours, seed)), collector.sources.about
    bend = _bent(collector, judged) if bends else context.learn_bend(about, ())
    return Prepared(judged, collector.groups, bend, about)


def fitted(
    given: Prepared, train_retrieval: TrainRetrieval | None = None, start: Ranker | None = None
) -> Ranker | None:
    """Fit a ranker; None if too few of the sampled examples have their entity among their candidates.
    `train_retrieval` returns a retrieval's cosines of each example's candidates, trained on the others.
    `start`: a ranker of the same features, which is fitted further."""
    judged, groups = given.judged, given.groups
    held_out = int(len(judged) * _HELD_OUT)
    if not held_out or all(j.right < 0 for j in judged):
        return None
    if train_retrieval:
        judged = _retrieved(given.about, judged, train_retrieval(judged))
        groups = (*groups, GROUPS[-1])
    weights, answers = _trained(judged, held_out, start)
    about = {
        "examples": len(judged),
        "among_candidates": float(np.mean([j.right >= 0 for j in judged])),
        "held_out": len(answers),
        "right": float(np.mean([right for _, right in answers])),
        "answers": sorted(answers, reverse=True),  # the surest first
    }
    return Ranker(weights | {"bend": given.bend}, about, feature_names(groups))


def _retrieved(
    about: npt.NDArray[np.float16], judged: Sequence[TrainingExample], cosines: Sequence[Matrix]
) -> list[TrainingExample]:
    """The examples with the features of the retrieval appended."""
    made = []
    for one, near in zip(judged, cosines, strict=True):
        described = np.asarray(about[one.evidence.rows].any(axis=1))
        features = np.concatenate([one.evidence.features, of_described(near, described)], axis=1)
        made.append(replace(one, evidence=replace(one.evidence, features=features)))
    return made


def _answer(ranker: Ranker, judged: TrainingExample) -> tuple[float, bool]:
    """The probability of the best candidate, and whether it is right."""
    logs = ranker.log_probabilities(judged.evidence.features)
    return round(float(np.exp(logs.max())), 4), bool(logs.argmax() == judged.right)


def _judged(collector: Collector, neighbours: Neighbours, seed: int) -> Iterator[TrainingExample]:
    """The sampled examples that have candidates."""
    examples = collector.sources.examples
    known = np.flatnonzero(examples.entity[: examples.bank.examples] >= 0)
    sample = np.random.default_rng(seed).permutation(known)[:SAMPLE]
    left_out = LeftOut(examples)
    for turn, (row, (nearest, votes)) in enumerate(zip(sample.tolist(), neighbours(sample), strict=True)):
        asked = question_of(examples, row, nearest, votes)
        asked = replace(asked, left_out=left_out.of(turn, examples.of_document(asked.text, asked.picture)))
        evidence = collector.evidence(asked)
        at = np.flatnonzero(evidence.rows == examples.entity[row])
        if len(evidence.rows):
            yield TrainingExample(
                evidence, int(at[0]) if len(at) else -1, asked.text_vector, _mention_vector(examples, row)
            )


def _bent(collector: Collector, judged: Sequence[TrainingExample]) -> Matrix:
    """The bend learned from all examples. The features of each half are computed with the bend of the
    other."""
    if _BENT not in feature_names(collector.groups):
        return context.learn_bend(collector.sources.about, ())
    place = feature_names(collector.groups).index(_BENT)
    half, about = len(judged) // 2, collector.sources.about
    for learning, asking in ((judged[:half], judged[half:]), (judged[half:], judged[:half])):
        matrix = context.learn_bend(about, learning)
        for one in asking:
            bent = fits(about, one.evidence.rows, bend(one.text, matrix))
            one.evidence.features[:, place : place + 2] = bent
    return context.learn_bend(about, judged)


def question_of(examples: Examples, row: int, nearest: npt.NDArray[np.int64], votes: Matrix) -> Question:
    return Question(
        mention=examples.bank.mention(row),
        text=examples.bank.text(row),
        text_vector=examples.text_vectors[examples.text[row]].astype(np.float32),
        picture=examples.picture(row),
        nearest=nearest,
        votes=votes,
        mention_vector=_mention_vector(examples, row),
    )


def _mention_vector(examples: Examples, row: int) -> Matrix:
    return np.asarray(examples.bank.mention_vectors[row], np.float32)


@dataclass(frozen=True)
class _Tables:
    """The features of all mentions' candidates, mention after mention: [candidates, features]; where each
    mention's begin, and how many there are; the `most` that one has."""

    features: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    most: int

    @classmethod
    def of(cls, judged: Sequence[TrainingExample]) -> _Tables:
        lengths = torch.tensor([len(j.evidence.rows) for j in judged])
        features = torch.from_numpy(np.concatenate([j.evidence.features for j in judged]))
        return cls(features, lengths.cumsum(0) - lengths, lengths, int(lengths.max()))

    def of_mentions(self, rows: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The features of some mentions' candidates; and for each its mention's place among `rows`, and its
        own among the mention's candidates."""
        lengths = self.lengths[rows]
        whose = torch.repeat_interleave(lengths)
        place = torch.arange(len(whose)) - (lengths.cumsum(0) - lengths)[whose]
        return self.features[self.starts[rows][whose] + place], (whose, place)


def _trained(
    judged: Sequence[TrainingExample], held_out: int, start: Ranker | None = None
) -> tuple[dict[str, Matrix], list[tuple[float, bool]]]:
    """Weights of several networks, each trained without `held_out` of the examples, and the answers of each
    to these."""
    tables = _Tables.of(judged)
    right = torch.tensor([j.right if j.right >= 0 else tables.most for j in judged])
    common = _scaling(tables.features) if start is None else {k: start.weights[k] for k in ("mean", "scale")}
    mean, scale = map(torch.from_numpy, (common["mean"], common["scale"]))
    tables.features.sub_(mean).mul_(scale).clamp_(-FAR, FAR)
    networks, answers = list[dict[str, Matrix]](), list[tuple[float, bool]]()
    for seed in range(_NETWORKS):
        torch.manual_seed(seed)
        tested = torch.arange(seed * held_out, (seed + 1) * held_out)
        rest = torch.ones(len(judged), dtype=torch.bool).index_fill(0, tested, False)
        former = None if start is None else {name: start.weights[name][seed] for name in NETWORK}
        networks.append(_network(tables, right, rest.nonzero()[:, 0], former))
        alone = Ranker(common | {name: w[None] for name, w in networks[-1].items()}, {}, ())
        answers += [_answer(alone, judged[i]) for i in tested.tolist()]
    return common | {name: np.stack([n[name] for n in networks]) for name in networks[0]}, answers


def _scaling(features: torch.Tensor) -> dict[str, Matrix]:
    deviation, mean = torch.std_mean(features, 0)
    scale = torch.where(deviation > _STILL, 1 / deviation, 0.0)
    return {"mean": mean.numpy(), "scale": scale.numpy()}


def _network(
    tables: _Tables, right: torch.Tensor, trained: torch.Tensor, start: dict[str, Matrix] | None
) -> dict[str, Matrix]:
    """A network trained on the rows `trained`, by cross-entropy over each mention's candidates and none of
    them. With the weights of a network to `start` from, it is drawn to them."""
    linear, inner, middle, outer = layers = _layers(tables.features.shape[1], start)
    weights = [p for layer in layers for p in layer.parameters()]
    former = [p.detach().clone() for p in weights] if start else []
    drop, rate = torch.nn.Dropout(0.1), _FURTHER_RATE if start else _RATE
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0 if start else 0.01)
    batches = -(-len(trained) // _BATCH)
    epochs = max(_FURTHER_EPOCHS if start else _EPOCHS, -(-_STEPS // batches))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, epochs * batches)
    for _ in range(epochs):
        for some in torch.randperm(len(trained)).split(_BATCH):
            rows = trained[some]
            x, places = tables.of_mentions(rows)
            hidden = drop(torch.relu(inner(x)))
            scores = linear(x) + outer(torch.relu(middle(hidden)))
            table = torch.full((len(rows), tables.most + 1), -torch.inf)
            table[:, -1] = 0  # none of them
            loss = torch.nn.functional.cross_entropy(table.index_put(places, scores[:, 0]), right[rows])
            for new, old in zip(weights, former, strict=False):
                loss = loss + _DRAWN * (new - old).square().sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return {name: w.detach().numpy() for name, w in _weights(layers).items()}


def _layers(width: int, start: dict[str, Matrix] | None) -> tuple[torch.nn.Linear, ...]:
    """The layers of a network, with the weights `start`, if there are some."""
    linear, inner = torch.nn.Linear(width, 1, bias=False), torch.nn.Linear(width, _HIDDEN)
    middle, outer = torch.nn.Linear(_HIDDEN, _HIDDEN), torch.nn.Linear(_HIDDEN, 1, bias=False)
    layers = linear, inner, middle, outer
    for name, weights in (start or {}).items():
        _weights(layers)[name].data.copy_(torch.from_numpy(weights))
    return layers


def _weights(layers: tuple[torch.nn.Linear, ...]) -> dict[str, torch.Tensor]:
    linear, inner, middle, outer = layers
    return {
        "linear": linear.weight[0], "inner": inner.weight.T, "inner_bias": inner.bias,
        "middle": middle.weight.T, "middle_bias": middle.bias, "outer": outer.weight[0],
    }  # fmt: skip
