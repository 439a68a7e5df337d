"""What the examples teach of how texts and entities fit, before the ranker is fitted.

How a text's vector must be bent to come near the description of who is meant in it: a matrix, taught by
contrast. The encoder stays as it is, and so do the descriptions' vectors: a new entity needs nothing more.
And a retrieval, where one is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.errors import Mistake
from gemel_ray.ranking import towers
from gemel_ray.ranking.evidence import Evidence
from gemel_ray.ranking.towers import Asked, Frozen, Negatives

Matrix = npt.NDArray[np.float32]
_EPOCHS, _BATCH, _RATE, _DECAY = 6, 64, 2e-3, 3.0
_FEW = 64  # examples that teach nothing
_WRONG = 24  # candidates that an example is told apart from, beside the other examples' entities
_OTHERS = 40  # candidates that the negatives of a retrieval's example are drawn from
_SHARPNESS = 3.0  # the logarithm of what cosines are multiplied by, at first


@dataclass(frozen=True)
class Judged:
    """An example's candidates and which of them is right; -1: none."""

    evidence: Evidence
    right: int
    text: Matrix  # its vector
    mention: Matrix  # and the mention's


def learnt(about: npt.NDArray[np.float16], judged: Sequence[Judged], seed: int = 0) -> Matrix:
    """[width, width], to be added to the identity; zeros where too few examples have a described entity. An
    example's other candidates are the hard negatives, the others' entities of a batch the easy ones."""
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


def _drawn(one: Judged, dice: np.random.Generator) -> npt.NDArray[np.int64]:
    """The right candidate, then wrong ones; -1 where there are not so many."""
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
    """Cross-entropy of the right entities among their own candidates and the other examples' entities."""
    vectors = torch.from_numpy(about[rows].astype(np.float32))
    absent = torch.from_numpy(rows < 0) | ~vectors.any(-1)  # without a description nothing is learnt of it
    absent[:, 0] = False
    hard = torch.einsum("iw,ijw->ij", texts, vectors)
    same = torch.from_numpy(rows[:, 0] == rows[:, :1])
    easy = texts @ vectors[:, 0].T
    masked = torch.cat([absent, same], dim=1)
    scores = (sharpness * torch.cat([hard, easy], dim=1)).masked_fill(masked, -torch.inf)
    return torch.nn.functional.cross_entropy(scores, torch.zeros(len(rows), dtype=torch.long))


# A retrieval taught on the examples, each half of them judged by what the other half taught.


def crossed(
    known: Frozen, judged: Sequence[Judged], negatives: Negatives
) -> tuple[list[Matrix], dict[str, Matrix]]:
    """How well the candidates of each example fit, by towers that the other half of the examples taught; and
    the weights of those that all of them taught."""
    half, found = len(judged) // 2, list[Matrix]()
    for learning, asking in ((judged[half:], judged[:half]), (judged[:half], judged[half:])):
        made = _taught(known, learning, negatives)
        entities, weights = made.all_entities(known), made.weights()
        for one in asking:
            vectors = entities[one.evidence.rows].astype(np.float32)
            found.append(vectors @ towers.asked(weights, one.mention, one.text))
    return found, _taught(known, judged, negatives).weights()


def _taught(known: Frozen, judged: Sequence[Judged], negatives: Negatives) -> towers.Towers:
    """By the examples whose entity is described, against others that are: that some are not tells nothing."""
    described = [np.asarray(known.heads[one.evidence.rows].any(axis=1)) for one in judged]
    pairs = [(j, d) for j, d in zip(judged, described, strict=True) if j.right >= 0 and d[j.right]]
    named = [one for one, _ in pairs]
    if not named:
        raise Mistake(
            "a retrieval is taught on examples whose entities are described: set bank.retrieval=none"
        )
    right = np.array([one.evidence.rows[one.right] for one in named])
    others = [np.delete(one.evidence.rows, one.right)[np.delete(d, one.right)][:_OTHERS] for one, d in pairs]
    mentions, texts = np.stack([one.mention for one in named]), np.stack([one.text for one in named])
    return towers.taught(known, Asked(mentions, texts, right, others), negatives)
