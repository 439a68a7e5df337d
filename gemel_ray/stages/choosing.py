"""A choice by the language model among the ranker's best candidates, by their descriptions.

Assemble lists the candidates, each with a letter, after the beginning of the prompt (`Choices`).
Generate reads the log-probabilities of the letters in one pass (`Choosing`): no name is written.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge import prefix_tree
from gemel_ray.knowledge.prefix_tree import PrefixTree, Tokenize
from gemel_ray.records import Row

if TYPE_CHECKING:
    from gemel_ray.knowledge.entities import Entities

LETTERS = string.ascii_uppercase
_DESCRIPTION = 120  # characters of it, at most

LogProbs = npt.NDArray[np.float64]


class Choices:
    """Lists the candidates of a mention of which the ranker is not sure."""

    def __init__(self, entities: Entities, most: int, sure: float) -> None:
        self._entities, self._most, self._sure = entities, most, np.log(sure) if sure else -np.inf

    def of(self, row: Row) -> list[str]:
        """The `likely` entities of a row as lines; none where there is nothing to choose."""
        likely, chances = (row["likely"] or [])[: self._most], row["chances"] or []
        if len(likely) < 2 or chances[0] > self._sure:
            return []
        about = (self._entities.table["description"][entity].as_py() for entity in likely)
        pairs = zip(self._entities.of(likely), about, strict=True)
        return [_line(name, description) for (_, name), description in pairs]


def _line(name: str, description: str | None) -> str:
    if not description:
        return name
    said = " ".join(description.split())
    if len(said) > _DESCRIPTION:
        said = said[:_DESCRIPTION].rpartition(" ")[0] or said[:_DESCRIPTION]
    return f"{name}: {said}"


class Choosing:
    """The letters as a prefix tree: what the model may write for a choice."""

    def __init__(self, most: int, tokenize: Tokenize, end_token: int) -> None:
        self._folder = TemporaryDirectory(prefix="gemel-ray-choices-")
        self.folder = Path(self._folder.name)
        self.tree: PrefixTree = prefix_tree.build(LETTERS[:most], tokenize, end_token, self.folder)
        self.most = most

    def log_probs(self, said: dict[int, float], count: int) -> LogProbs:
        """The log-probabilities of the first `count` candidates, from those of the letters by leaf."""
        letters = {rows[0]: said[leaf] for leaf, rows in zip(said, self.tree.entities([*said]), strict=True)}
        return normalised([letters.get(letter, -np.inf) for letter in range(count)])


def normalised(logs: Sequence[float] | LogProbs) -> LogProbs:
    """Log-probabilities that sum to one."""
    made = np.asarray(logs, np.float64)
    return np.asarray(made - np.logaddexp.reduce(made))


def reranked(chances: Sequence[float], chosen: LogProbs, weight: float) -> list[float]:
    """The ranker's log-probabilities, those of the candidates that were chosen among pooled with the choice.
    `weight`: the choice's; together these candidates stay as likely as they were."""
    few = np.asarray(chances[: len(chosen)], np.float64)
    pooled = normalised((1 - weight) * few + weight * chosen) + np.logaddexp.reduce(few)
    return [*pooled.tolist(), *chances[len(chosen) :]]
