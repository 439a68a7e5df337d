"""What a linker could know in advance: the training mentions' targets and the knowledge base's names.

The breakdowns by popularity and ambiguity, and the baseline without any model, are computed from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gemel_ray.errors import Mistake
from gemel_ray.evaluation.judged import gold_mentions
from gemel_ray.readers.fields import normal


class Named(NamedTuple):
    """The parts of an entity that the breakdowns use."""

    name: str
    popularity: float | None = None
    described: bool = False


@dataclass(frozen=True)
class Known:
    """Empty without training files, or without a knowledge base."""

    targets: Counter[str] = field(default_factory=Counter)  # how often each name was a target
    targets_of: dict[str, Counter[str]] = field(default_factory=dict)  # the same for each mention string
    popularity: dict[str, float | None] = field(default_factory=dict)  # of each name's most popular entity
    entities: int = 0
    described: frozenset[str] = frozenset()  # names of which an entity has a description

    def quarters(self) -> list[float]:
        """The quartiles of the popularity of names; empty if the knowledge base has no popularities."""
        given = [value for value in self.popularity.values() if value is not None]
        return [float(q) for q in np.quantile(given, [0.25, 0.5, 0.75])] if given else []


def known(train: Sequence[str] = (), entities: Iterable[Named] = ()) -> Known:
    """Read both. Only a training mention's string and its target's name are kept."""
    targets: Counter[str] = Counter()
    targets_of: dict[str, Counter[str]] = defaultdict(Counter)
    for row in gold_mentions(train, ("mention_id", "mention", "target")):
        if row["target"] is not None and row["mention"] is not None:
            targets[row["target"]] += 1
            targets_of[normal(row["mention"])][row["target"]] += 1
    popularity: dict[str, float | None] = {}
    described: set[str] = set()
    count = 0
    for name, value, text in entities:
        count += 1
        if text:
            described.add(name)
        given = (v for v in (popularity.get(name), value) if v is not None)
        popularity[name] = max(given, default=None)
    return Known(targets, dict(targets_of), popularity, count, frozenset(described))


def named_in(file: str) -> Iterator[Named]:
    """The entities of a file, as build reads them. Raises ValueError if there are none."""
    from gemel_ray.knowledge.entities import Rejects
    from gemel_ray.knowledge.entity_files import read

    rejects = Rejects()
    empty = True
    for row in read(file, rejects):
        empty = False
        yield Named(row["name"], row["popularity"], bool(row["description"]))
    if empty:
        raise Mistake(f"{file} holds no entity" + (f": {rejects.first[0]}" if rejects.count else ""))


def named_in_workspace(folder: Path) -> Iterator[Named]:
    """The entities of a workspace. Raises ValueError if it is not a workspace."""
    from gemel_ray.knowledge.entities import Entities
    from gemel_ray.knowledge.versions import current_folder, read_facts

    read_facts(folder)
    table: Any = Entities.open(current_folder(folder) / "entities.arrow").table
    for batch in table.select(["name", "popularity", "description"]).to_batches():
        described = pc.greater(pc.fill_null(pc.utf8_length(batch["description"]), 0), 0)
        columns = (batch["name"], batch["popularity"], described)
        yield from map(Named, *(column.to_pylist() for column in columns))
