"""One mention that is asked about, and what is known of it and of its candidates before features are made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.entities import Entities
from gemel_ray.ranking.connections import Connections
from gemel_ray.ranking.examples import Examples
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.postings import Weighed
from gemel_ray.ranking.retrieval import Retrieval

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """One mention. `text_vector` of unit length; `picture`: CLIP's feature of unit length, or None. `nearest`
    and `similarities`: rows of the bank and their cosines. `own`: the examples of the question's own text,
    which say nothing (fitting)."""

    mention: str
    text: str
    text_vector: Vectors
    picture: Vectors | None
    nearest: npt.NDArray[np.int64]
    similarities: Vectors
    own: frozenset[int] = frozenset()
    mention_vector: Vectors | None = None  # for a trained retrieval


@dataclass(frozen=True)
class Sources:
    """All that is known of one version of the knowledge. `about`: vectors of what entities are described as,
    float16 [entities, width]; zeros: not described. `bend`: see context.py. `connections`: of the knowledge
    graph, where there is one, and `retrieval`, where one was taught. `described` False: what entities are
    described as is not read."""

    names: Names
    examples: Examples
    entities: Entities
    about: npt.NDArray[np.float16]
    bend: Vectors | None = None
    connections: Connections | None = None
    retrieval: Retrieval | None = None
    described: bool = True


@dataclass(frozen=True)
class SharedWords:
    """What entities share words with, by their weight: their names with the mention and with the rest of the
    text, their descriptions with the text, the texts of their examples with it."""

    mention: Weighed
    around: Weighed
    described: Weighed
    examples: Weighed


@dataclass(frozen=True)
class Case:
    """A question with its candidates: `rows` of the entities, int64 [n], and what the names' index says of
    each. By row: how often examples mean it by this mention (`prior`), the neighbours' share of it (`votes`),
    and whose `words` it has. `mention` and `text` are folded."""

    asked: Question
    mention: str
    text: str
    rows: npt.NDArray[np.int64]
    known: list[dict[str, Any]]
    prior: Counter[int]
    votes: dict[int, float]
    words: SharedWords
