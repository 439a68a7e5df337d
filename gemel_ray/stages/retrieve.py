"""Retrieve: solved examples similar to a mention, as rows of the demonstration bank.

The most similar comes last, next to the query (paper, section 3.3); an example of the same
mention, text and picture never demonstrates itself. With shared sets, many prompts have the same
examples first, followed by each mention's nearest ones. Here documents become mentions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank, PublishedOrder, SharedSets
from gemel_ray.knowledge.hashing import MentionWords
from gemel_ray.knowledge.vectors import Bonus
from gemel_ray.knowledge.vectors import Vectors as Store
from gemel_ray.models.encoders import unit
from gemel_ray.records import Row
from gemel_ray.setting import setting
from gemel_ray.stage import Stage, Work, answer, arrays, matrix

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.ranking.ranking import Ranking

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Retrieve(Stage):
    """Finds solved examples for each mention.

    `fused` combines the rankings by mention and by image, by weighted reciprocal ranks. Without a picture,
    `image` and `fused` rank by the mention. A prompt has one of the shared sets, which are chosen from the
    bank's examples, then the mention's `nearest` examples. `official_order` searches the whole bank by the
    mention alone.
    """

    explodes: ClassVar = ("mentions", "mention_vectors")
    reads: ClassVar = ("text", "mention", "image_vector", "mention_vector", "text_vector", "options")
    writes: ClassVar = pa.schema(
        [
            pa.field("shots", pa.list_(pa.int32())),  # rows of the bank, the nearest last
            pa.field("shared", pa.int32()),  # how many of the first are from the shared set
            pa.field("nearest", pa.list_(pa.int32())),  # rows of the bank, most similar last
            pa.field("votes", pa.list_(pa.float32())),  # how much each of `nearest` counts; 1 together
            pa.field("likely", pa.list_(pa.int32())),  # rows of candidate entities, best first
            pa.field("chances", pa.list_(pa.float32())),  # of `likely`: the ranker's log-probabilities
            pa.field("reasons", pa.string()),  # why the ranker prefers the first of them
        ]
    )
    demonstrations: int = setting(16, "solved examples in a prompt", at_least=0, unit="examples")
    shared_sets: int = setting(
        1,
        "sets of examples that prompts begin with, computed once each; 0: each mention has its "
        "nearest examples",
        at_least=0,
        unit="sets",
        was="sets",
    )
    nearest: int = setting(
        0,
        "number of the demonstrations that are the mention's nearest ones, after its shared set",
        at_least=0,
        unit="examples",
        was="own",
    )
    by: Literal["mention", "image", "fused", "random"] = setting(
        "fused", "similarity of the mention (the paper), of the image, of both (fused), or random"
    )
    mention_weight: float = setting(1.0, "weight of the ranking by mention, if fused", at_least=0)
    image_weight: float = setting(1.0, "weight of the ranking by image, if fused", at_least=0)
    word_bonus: float = setting(
        0.2,
        "added to the cosine of an example whose mention has all words of the mention",
        at_least=0,
        was="words",
    )
    names: bool = setting(True, "search the knowledge base's names together with the examples (bank.names)")
    ranking: int = setting(
        10,
        "number of candidates that the workspace's ranker passes to Generate; 0: none",
        at_least=0,
        unit="candidates",
    )
    retrieved: int = setting(
        0,
        "number of entities nearest by the trained retrieval that are candidates, too (bank.retrieval)",
        at_least=0,
        unit="entities",
    )
    descriptions: bool = setting(True, "let the ranker use the entities' descriptions")
    why: bool = setting(True, "explain each answer (its field why)")
    allow_itself: bool = setting(
        False,
        "let an example be a demonstration for its mention and text (as in GEMEL, except in training)",
        was="itself",
    )
    official_order: bool = setting(
        False,
        "choose and order demonstrations exactly as GEMEL's code, in a workspace of import-gemel",
        was="published",
    )

    def __post_init__(self) -> None:
        if self.shared_sets and self.nearest > self.demonstrations:
            raise Mistake("retrieve.nearest is at most retrieve.demonstrations")
        if self.shared_sets and self.official_order:
            raise Mistake(
                "retrieve.official_order needs unshared lists of examples: set retrieve.shared_sets=0"
            )

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        return _Retrieving(self, workspace)


class _Retrieving(Work):
    def __init__(self, stage: Retrieve, workspace: Workspace) -> None:
        self.stage, self.bank = stage, workspace.bank
        wanted = stage.demonstrations > 0 and len(self.bank) > 0
        self.official = PublishedOrder(self.bank) if wanted and stage.official_order else None
        searches = wanted and stage.by != "random" and not stage.official_order
        self.store = workspace.vectors(names=stage.names) if searches else None
        shared = stage.demonstrations - stage.nearest
        shows = wanted and stage.shared_sets and shared
        self.sets = SharedSets(self.bank, stage.shared_sets, shared) if shows else None
        self.ranking = _ranking(workspace, stage) if stage.ranking and workspace.ranks else None
        self.words = self.bank.words() if wanted and stage.word_bonus else MentionWords.of(())

    def renewed(self, workspace: Workspace) -> Work:
        return _Retrieving(self.stage, workspace)

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts, mentions = batch["text"].to_pylist(), batch["mention"].to_pylist()
        vectors, pictures = matrix(batch["mention_vector"]), arrays(batch["image_vector"])
        without: list[list[int]] = [[] for _ in texts]
        if not self.stage.allow_itself:
            # One caption may stand under many pictures. GEMEL's code looks at the text alone.
            seen = [None] * len(texts) if self.official else pictures
            without = self.bank.same(texts, mentions, seen)
        if self.official is not None:
            rows = self.official.nearest(vectors, self.stage.demonstrations, without)
        elif self.store is not None:
            rows = self._similar(self.store, mentions, vectors, batch["image_vector"], without)
        else:
            rows = [self._random(*key) for key in zip(texts, mentions, without, strict=True)]
        off = [bool(o) and o["demonstrations"] is False for o in batch["options"].to_pylist()]
        nearest = [row[:0] if no else row[::-1] for row, no in zip(rows, off, strict=True)]
        sets, individual = [row[:0] for row in rows], nearest
        if self.sets is not None:
            every = zip(self.sets.of(vectors), without, off, strict=True)
            sets = [s[:0] if no else s[~np.isin(s, w)] if w else s for s, w, no in every]
            individual = [n[max(0, len(n) - self.stage.nearest) :] for n in nearest]
        votes = self._votes(vectors, nearest, mentions, pictures)
        columns = {
            "shots": [np.concatenate(pair, dtype=np.int32) for pair in zip(sets, individual, strict=True)],
            "shared": [len(s) for s in sets],
            "nearest": [rows.astype(np.int32) for rows in nearest],
            "votes": votes,
        }
        if self.ranking is None:
            columns |= dict.fromkeys(("likely", "chances", "reasons"), [None] * len(batch))
        else:
            columns |= self._ranked(self.ranking, batch, pictures, nearest, votes)
        return answer(self.stage.writes, columns)

    def _ranked(
        self, ranking: Ranking, batch: pa.Table, pictures: list[Vectors | None], nearest: list[Rows],
        votes: list[Vectors],
    ) -> Row:  # fmt: skip
        """The workspace's ranker's candidates for each mention."""
        from gemel_ray.ranking.features import Question

        texts, mentions = batch["text"].to_pylist(), batch["mention"].to_pylist()
        vectors = matrix(batch["text_vector"]), matrix(batch["mention_vector"])
        given = zip(texts, mentions, *vectors, pictures, nearest, votes, strict=True)
        ranked = [
            ranking(
                Question(
                    mention=mention,
                    text=text,
                    text_vector=text_vector,
                    picture=None if picture is None else unit(picture[None])[0],
                    nearest=np.asarray(rows, np.int64),
                    votes=shares,
                    mention_vector=mention_vector,
                ),
                self.stage.ranking,
                why=self.stage.why,
            )
            for text, mention, text_vector, mention_vector, picture, rows, shares in given
        ]
        rows, logs, reasons = zip(*ranked, strict=True)
        return {"likely": list(rows), "chances": list(logs), "reasons": list(reasons)}

    def _votes(
        self, vectors: Vectors, nearest: list[Rows], mentions: list[str], pictures: list[Vectors | None]
    ) -> list[Vectors]:
        """How much each of the rows `nearest` counts for its mention."""
        seen = pictures if self.stage.by in ("image", "fused") else [None] * len(nearest)
        cosines = np.split(self._near(vectors, nearest, mentions), np.cumsum(list(map(len, nearest)))[:-1])
        every = zip(nearest, cosines, seen, strict=True)
        return [votes(self.bank, rows, near, picture) for rows, near, picture in every]

    def _near(self, vectors: Vectors, nearest: list[Rows], mentions: list[str]) -> Vectors:
        """Similarities of the rows `nearest` to each mention, all mentions concatenated: cosines plus the
        bonus for shared words."""
        rows = np.concatenate([np.empty(0, np.int64), *nearest])
        if not len(rows):  # also for an empty bank, whose vectors have no width
            return np.zeros(0, np.float32)
        query = np.repeat(np.arange(len(nearest)), list(map(len, nearest)))
        cosines = np.einsum("ij,ij->i", unit(self.bank.mention_vectors[rows]), unit(vectors)[query])
        shared = [self._shared(*pair) for pair in zip(mentions, nearest, strict=True)]
        return (cosines + np.concatenate(shared)).astype(np.float32)

    def _shared(self, mention: str, rows: Rows) -> Vectors:
        """The bonus of rows whose mentions have all of the mention's words."""
        return np.float32(self.stage.word_bonus) * self.words.with_all(mention, rows).astype(np.float32)

    def _similar(
        self, store: Store, mentions: list[str], vectors: Vectors, images: pa.ChunkedArray,
        without: list[list[int]],
    ) -> list[Rows]:  # fmt: skip
        """Rows of the bank for each mention, most similar first."""
        stage, queries = self.stage, {"mention": vectors}
        if "image" in store.store.widths and stage.by != "mention":
            # Without a picture, a row of NaN, which finds nothing.
            queries["image"] = unit(matrix(images, store.store.widths["image"]))
        bonus: Bonus | None = (lambda i, rows: self._shared(mentions[i], rows)) if stage.word_bonus else None
        if stage.by == "fused":
            weights = {"mention": stage.mention_weight, "image": stage.image_weight}
            hits = store.search_fused(queries, stage.demonstrations, without, weights, {"mention": bonus})
        elif stage.by == "image" and "image" in queries:
            return self._similar_pictures(store, queries, without)
        else:
            hits = store.search("mention", vectors, stage.demonstrations, without, bonus)
        return [h.rows for h in hits]

    def _similar_pictures(
        self, store: Store, queries: dict[str, Vectors], without: list[list[int]]
    ) -> list[Rows]:
        """Rows of the bank by the picture; by the mention for one without a picture."""
        count = self.stage.demonstrations
        rows = [h.rows for h in store.search("image", queries["image"], count, without)]
        blind = [i for i, r in enumerate(rows) if not len(r)]
        found = store.search("mention", queries["mention"][blind], count, [without[i] for i in blind])
        for i, hit in zip(blind, found, strict=True):
            rows[i] = hit.rows
        return rows

    def _random(self, text: str, mention: str, without: list[int]) -> Rows:
        """Random rows: different for each mention, the same in every run."""
        seed = hashlib.blake2b(f"{mention}\0{text}".encode(), digest_size=8).digest()
        count = min(self.stage.demonstrations + len(without), self.bank.examples)
        drawn = np.random.default_rng(int.from_bytes(seed)).choice(self.bank.examples, count, replace=False)
        return drawn[~np.isin(drawn, without)][: self.stage.demonstrations]

    def retire(self) -> None:
        if self.store is not None:
            self.store.close()

    def close(self) -> None:
        self.retire()


def _ranking(workspace: Workspace, stage: Retrieve) -> Ranking:
    from gemel_ray.ranking.ranking import Ranking

    folder, bank = workspace.ranking_folder, workspace.bank
    return Ranking.open(
        folder, bank, workspace.entities, described=stage.descriptions, retrieved=stage.retrieved
    )


# How much each of a mention's nearest examples counts: by its mention, and by its picture.
#
# An example counts by the cosine of the mentions, and by that of the pictures. Which of the two says more
# differs from mention to mention: of "this flag" only the picture does, of "Obama" the word. The examples
# themselves decide: each is left out once, and the others vote for its target, by mention and by picture. The
# share of votes that the targets get, on average, is the weight of either way. Not in the paper.


TEMPERATURE = 0.02  # of cosines: an example that is nearer by as much counts for e times


def votes(bank: Bank, rows: Rows, cosines: Vectors, picture: Vectors | None) -> Vectors:
    """The share of each of `rows` of the bank, float32 [n]. Their mentions have these `cosines`; `picture` is
    CLIP's feature of the mention's picture [width]; without one the mentions decide."""
    by_mention = _shares(cosines)
    if picture is None:
        return by_mention
    places = bank.image_rows[rows]
    seen = np.flatnonzero(places >= 0)
    if not len(seen):
        return by_mention
    pictures = unit(bank.image_vectors[places[seen]])
    by_picture = np.zeros_like(by_mention)
    by_picture[seen] = _shares(pictures @ unit(picture[None])[0])
    targets = np.array([bank.target(int(row)) for row in rows])
    mentions = _predicted(unit(bank.mention_vectors[rows]), targets)
    looks = _predicted(pictures, targets[seen])
    weight = looks / (mentions + looks) if mentions + looks else 0.5
    return np.float32(1 - weight) * by_mention + np.float32(weight) * by_picture


def _shares(cosines: Vectors) -> Vectors:
    """The softmax along the last axis; empty without votes."""
    if not cosines.shape[-1]:
        return cosines
    made = np.exp((cosines - cosines.max(-1, keepdims=True)) / TEMPERATURE)
    shares: Vectors = (made / made.sum(-1, keepdims=True)).astype(np.float32)
    return shares


def _predicted(vectors: Vectors, targets: npt.NDArray[np.str_]) -> float:
    """The share of votes that examples with these unit vectors [n, width] get for their targets, each from
    the others, on average."""
    if len(vectors) < 2:
        return 0.0
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return float((_shares(near) * (targets[:, None] == targets)).sum(-1).mean())
