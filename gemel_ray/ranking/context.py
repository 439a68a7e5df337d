"""What is learned from the examples about texts and entities before the ranker is fitted.

First a matrix, the bend, that moves the vector of a text towards the description of the entity meant in it,
trained with a contrastive loss. The encoder and the descriptions' vectors do not change, so a new entity
needs no training. Second, if it is configured, a retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.errors import Mistake
from gemel_ray.ranking import towers
from gemel_ray.ranking.evidence import Evidence
from gemel_ray.ranking.towers import Frozen, Negatives, TowerExamples

Matrix = npt.NDArray[np.float32]
_EPOCHS, _BATCH, _RATE, _DECAY = 6, 64, 2e-3, 3.0
_FEW = 64  # examples: with fewer, nothing is learned
_WRONG = 24  # negative candidates of an example, besides the other examples' entities
_OTHERS = 40  # candidates from which the negatives of a retrieval's example are drawn
_SHARPNESS = 3.0  # the logarithm of the initial factor of cosines


@dataclass(frozen=True)
class TrainingExample:
    """An example's candidates, and the index of the right one; -1: none."""

    evidence: Evidence
    right: int
    text: Matrix  # the vector of the text
    mention: Matrix  # the vector of the mention


def learn_bend(about: npt.NDArray[np.float16], judged: Sequence[TrainingExample], seed: int = 0) -> Matrix:
    """The bend, [width, width], to be added to the identity; zeros if too few examples have a described
    entity. An example's other candidates are the hard negatives, the entities of a batch's other examples the
    easy ones."""
    described = [j for j in judged if j.right >= 0 and about[j.evidence.rows[j.right]].any()]
    width = about.shape[1]
    if len(described) < _FEW:
        return np.zeros((width, width), np.float32)
    texts = np.stack([j.text for j in described])
    generator, dice = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    bend = torch.zeros(width, width, requires_grad=True)
    sharpness = torch.tensor(_SHARPNESS, requires_grad=True)
    groups = [{"params": [bend], "weight_decay": _DECAY}, {"params": [sharpness], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=_RATE)
    steps = _EPOCHS * -(-len(texts) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    for _ in range(_EPOCHS):
        for some in torch.randperm(len(texts), generator=generator).split(_BATCH):
            rows = np.stack([_drawn(described[i], dice) for i in some.tolist()])
            text = torch.from_numpy(texts[some.numpy()])
            loss = _contrast(text + text @ bend, rows, about, sharpness.exp())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    matrix: Matrix = bend.detach().numpy()
    return matrix


def _drawn(one: TrainingExample, dice: np.random.Generator) -> npt.NDArray[np.int64]:
    """The right candidate, then wrong ones; -1 if there are fewer."""
    wrong = np.delete(one.evidence.rows, one.right)
    drawn = np.full(1 + _WRONG, -1)
    drawn[0] = one.evidence.rows[one.right]
    some = dice.choice(wrong, min(_WRONG, len(wrong)), replace=False)
    drawn[1 : 1 + len(some)] = some
    return drawn


def _contrast(
    texts: torch.Tensor,
    rows: npt.NDArray[np.int64],
    about: npt.NDArray[np.float16],
    sharpness: torch.Tensor,
) -> torch.Tensor:
    """The cross-entropy of the right entities among their candidates and the other examples' entities."""
    vectors = torch.from_numpy(about[rows].astype(np.float32))
    absent = torch.from_numpy(rows < 0) | ~vectors.any(
        -1
    )  # nothing is learned from an entity without description
    absent[:, 0] = False
    hard = torch.einsum("iw,ijw->ij", texts, vectors)
    same = torch.from_numpy(rows[:, 0] == rows[:, :1])
    easy = texts @ vectors[:, 0].T
    masked = torch.cat([absent, same], dim=1)
    scores = (sharpness * torch.cat([hard, easy], dim=1)).masked_fill(masked, -torch.inf)
    return torch.nn.functional.cross_entropy(scores, torch.zeros(len(rows), dtype=torch.long))


# A retrieval trained on the examples; each half of them is scored by towers trained on the other half.


def cross_fitted(
    known: Frozen, judged: Sequence[TrainingExample], negatives: Negatives
) -> tuple[list[Matrix], dict[str, Matrix]]:
    """The cosines of each example's candidates, by towers trained on the other half of the examples; and the
    weights of towers trained on all."""
    half, found = len(judged) // 2, list[Matrix]()
    for learning, asking in ((judged[half:], judged[:half]), (judged[:half], judged[half:])):
        trained = _trained(known, learning, negatives)
        entities, weights = trained.all_entities(known), trained.weights()
        for one in asking:
            vectors = entities[one.evidence.rows].astype(np.float32)
            found.append(vectors @ towers.mention_vector(weights, one.mention, one.text))
    return found, _trained(known, judged, negatives).weights()


def _trained(known: Frozen, judged: Sequence[TrainingExample], negatives: Negatives) -> towers.Towers:
    """Towers trained on the examples whose entity has a description, with negatives that have one: the mere
    lack of a description should not count."""
    described = [np.asarray(known.heads[one.evidence.rows].any(axis=1)) for one in judged]
    pairs = [(j, d) for j, d in zip(judged, described, strict=True) if j.right >= 0 and d[j.right]]
    named = [one for one, _ in pairs]
    if not named:
        raise Mistake(
            "a retrieval is trained on examples whose entities have descriptions: set bank.retrieval=none"
        )
    right = np.array([one.evidence.rows[one.right] for one in named])
    others = [np.delete(one.evidence.rows, one.right)[np.delete(d, one.right)][:_OTHERS] for one, d in pairs]
    mentions, texts = np.stack([one.mention for one in named]), np.stack([one.text for one in named])
    return towers.trained(known, TowerExamples(mentions, texts, right, others), negatives)
