"""A trained retrieval: two towers that make vectors of a mention in its text and of an entity with its facts,
to be compared by their cosine. A million weights over frozen vectors, trained with a contrastive loss on the
examples.

It follows KGMEL's retrieval (SIGIR 2025) without its pictures and without facts that a vision model writes
about a mention. The negatives of an example are one of `NEGATIVES`: the entities of the other examples of its
batch; these and some of its candidates, drawn evenly; or drawn by a generator, whose reward is the score that
the retrieval gives them (PGMEL, after KBGAN's policy gradient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from gemel_ray.ranking.triples import Triples

Vectors = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
Numbers = npt.NDArray[np.int64]
Negatives = Literal["batch", "hard", "generated"]
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)
FACTS = 8  # of an entity: the rarest
_SHARPNESS, _ATTENTION = 0.05, 0.1  # temperatures of the contrast and of the attention
_INNER, _BATCH, _EPOCHS, _RATE, _DECAY = 128, 128, 6, 1e-3, 1e-2
_DRAWN = 4  # of an example's candidates, as negatives
_ALL = 4096  # entities encoded at once


@dataclass(frozen=True)
class Frozen:
    """Vectors that are not trained: of entities' descriptions [entities, width], of the graph's nodes and
    relations; the facts of each entity, int32 [entities, FACTS], -1: none; and the node and the relation of
    each fact."""

    heads: Half
    nodes: Half
    relations: Half
    facts: npt.NDArray[np.int32]
    node: npt.NDArray[np.int32]
    relation: npt.NDArray[np.int32]


@dataclass(frozen=True)
class TowerExamples:
    """Examples: vectors of mentions and texts, the right entity, and other candidates."""

    mentions: Vectors
    texts: Vectors
    right: Numbers
    others: Sequence[Numbers]


def rarest(
    triples: Triples, identities: npt.NDArray[np.uint64], known: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """The rarest facts of each entity, of those whose nodes have vectors (`known`)."""
    found = np.full((len(identities), FACTS), -1, np.int32)
    for row, identity in enumerate(identities.tolist()):
        facts = triples.facts(identity)
        facts = facts[known[triples.node[facts]]]
        best = facts[np.argsort(triples.degree[triples.node[facts]], kind="stable")[:FACTS]]
        found[row, : len(best)] = best
    return found


class Towers(torch.nn.Module):
    """The vector of a mention: of its frozen vector and its text's, gated. The vector of an entity: of its
    description's, and an attention over its facts. Before training, both are the frozen vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text, self.gate, self.mention = (torch.nn.Linear(width, width) for _ in range(3))
        self.mixed = torch.nn.Sequential(
            torch.nn.Linear(2 * width, _INNER), torch.nn.LeakyReLU(), torch.nn.Linear(_INNER, width)
        )
        self.key, self.query = (torch.nn.Linear(width, _INNER, bias=False) for _ in range(2))
        self.summed, self.head = (torch.nn.Linear(width, width) for _ in range(2))
        for layer in (self.text, self.mention, self.summed, self.head):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)

    def weights(self) -> dict[str, Vectors]:
        return {name: np.ascontiguousarray(weight.numpy()) for name, weight in self.state_dict().items()}

    def mention_vectors(self, mentions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        gated = torch.sigmoid(self.gate(texts)) * self.text(texts)
        return torch.nn.functional.normalize(mentions + texts + self.mention(mentions) + gated, dim=-1)

    def entities(self, frozen: Frozen, rows: Numbers) -> torch.Tensor:
        heads = torch.from_numpy(frozen.heads[rows].astype(np.float32))
        facts = frozen.facts[rows]
        there = torch.from_numpy(facts >= 0)
        distinct, at = np.unique(np.maximum(facts, 0), return_inverse=True)
        ends = torch.from_numpy(frozen.nodes[frozen.node[distinct]].astype(np.float32))
        relations = torch.from_numpy(frozen.relations[frozen.relation[distinct]].astype(np.float32))
        mixed = ends + self.mixed(torch.cat([ends, relations], dim=-1))
        places = torch.from_numpy(at.reshape(facts.shape))
        scores = torch.einsum("ei,efi->ef", self.query(heads), self.key(mixed)[places])
        scores = (scores / (_INNER**0.5 * _ATTENTION)).masked_fill(~there, -1e4)
        weights = torch.softmax(scores, dim=-1) * there
        taken = torch.einsum("ef,efw->ew", weights, mixed[places])
        return torch.nn.functional.normalize(heads + self.head(heads) + self.summed(taken), dim=-1)

    @torch.no_grad()
    def all_entities(self, frozen: Frozen) -> Half:
        rows = np.arange(len(frozen.heads))
        parts = [self.entities(frozen, rows[i : i + _ALL]).numpy() for i in range(0, len(rows), _ALL)]
        return np.concatenate(parts).astype(np.float16)


def loaded(weights: dict[str, Vectors]) -> Towers:
    """Towers of these weights."""
    made = Towers(len(weights["head.bias"]))
    made.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    return made.eval()


def mention_vector(weights: dict[str, Vectors], mention: Vectors, text: Vectors) -> Vectors:
    """The result of `Towers.mention_vectors` for one mention, without torch."""

    def of(layer: str, vector: Vectors) -> Vectors:
        return weights[f"{layer}.weight"] @ vector + weights[f"{layer}.bias"]

    vector = mention + text + of("mention", mention) + of("text", text) / (1 + np.exp(-of("gate", text)))
    unit: Vectors = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


class Generator(torch.nn.Module):
    """Draws an example's negatives, by a bilinear form of the mention and of the entity's description."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.form = torch.nn.Linear(width, width, bias=False)
        torch.nn.init.eye_(self.form.weight)
        self.baseline, self.rewards = 0.0, list[float]()

    def logits(self, frozen: Frozen, asked: torch.Tensor, others: Numbers) -> torch.Tensor:
        vectors = torch.from_numpy(frozen.heads[np.maximum(others, 0)].astype(np.float32))
        scores = torch.einsum("iw,ijw->ij", self.form(asked), vectors) / 0.2
        return scores.masked_fill(torch.from_numpy(others < 0), -1e4)

    def loss(self, logits: torch.Tensor, drawn: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Policy gradient; the baseline is the mean reward of the epoch before."""
        self.rewards.append(float(rewards.mean()))
        chosen = torch.log_softmax(logits, dim=-1).gather(1, drawn)
        return -((rewards - self.baseline) * chosen).mean()

    def next_epoch(self) -> None:
        self.baseline, self.rewards = float(np.mean(self.rewards or [0.0])), []


def trained(frozen: Frozen, asked: TowerExamples, negatives: Negatives, seed: int = 0) -> Towers:
    """Towers trained to distinguish each example's entity from its negatives."""
    torch.manual_seed(seed)
    width = frozen.heads.shape[1]
    towers, generator = Towers(width), Generator(width)
    steps = _EPOCHS * -(-len(asked.right) // _BATCH)
    optimiser = torch.optim.AdamW(towers.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    drawing = torch.optim.Adam(generator.parameters(), lr=_RATE)
    others = _padded(asked.others)
    for _ in range(_EPOCHS):
        for some in torch.randperm(len(asked.right)).split(_BATCH):
            batch = some.numpy()
            texts, mentions = torch.from_numpy(asked.texts[batch]), torch.from_numpy(asked.mentions[batch])
            logits = generator.logits(frozen, mentions + texts, others[batch])
            drawn = _drawn(logits.detach() * (negatives == "generated"), others[batch])
            hard = np.take_along_axis(others[batch], drawn.numpy(), 1) if negatives != "batch" else others[:0]
            columns = np.concatenate([asked.right[batch], hard.ravel()])
            scores = (
                towers.mention_vectors(mentions, texts) @ towers.entities(frozen, np.maximum(columns, 0)).T
            )
            optimiser.zero_grad()
            _contrast(scores, asked.right[batch], columns).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if negatives == "generated":
                drawing.zero_grad()
                generator.loss(logits, drawn, _rewards(scores.detach(), hard)).backward()  # type: ignore[no-untyped-call]
                drawing.step()
        generator.next_epoch()
    return towers.eval()


def _rewards(scores: torch.Tensor, hard: Numbers) -> torch.Tensor:
    """The scores that the towers gave each example's negatives: high for those that seem right."""
    count = len(hard)
    of_example = scores[:, count:].view(count, count, _DRAWN)[torch.arange(count), torch.arange(count)]
    return of_example * torch.from_numpy(hard >= 0)


def _contrast(scores: torch.Tensor, right: Numbers, columns: Numbers) -> torch.Tensor:
    """The cross-entropy of the right entity among all of the batch; its repetitions are not negatives."""
    again = torch.from_numpy((columns[None] == right[:, None]) | (columns < 0)[None])
    again[torch.arange(len(right)), torch.arange(len(right))] = False
    return torch.nn.functional.cross_entropy(
        (scores / _SHARPNESS).masked_fill(again, -torch.inf), torch.arange(len(right))
    )


def _drawn(logits: torch.Tensor, others: Numbers) -> torch.Tensor:
    """Indices of some candidates, drawn without repetition by their logits (Gumbel's trick)."""
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-9, 1 - 1e-9)))
    return (logits + noise).masked_fill(torch.from_numpy(others < 0), -1e9).topk(_DRAWN, dim=1).indices


def _padded(others: Sequence[Numbers]) -> Numbers:
    """The candidates as a table [examples, most]; -1: none."""
    table = np.full((len(others), max(_DRAWN, *map(len, others))), -1)
    for row, some in enumerate(others):
        table[row, : len(some)] = some
    return table
