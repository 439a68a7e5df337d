"""What a linker could have known before: the training mentions' targets and the knowledge base's names.

From it come the breakdowns by popularity and ambiguity, and the baseline without any model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gemel_ray.characters import normal
from gemel_ray.errors import Mistake
from gemel_ray.evaluation.judged import gold_mentions


class Named(NamedTuple):
    """What is kept of an entity."""

    name: str
    popularity: float | None = None
    described: bool = False


@dataclass(frozen=True)
class Known:
    """Empty where no training file, or no knowledge base, was given."""

    targets: Counter[str] = field(default_factory=Counter)  # how often an entity was a target
    targets_of: dict[str, Counter[str]] = field(default_factory=dict)  # of a mention string
    popularity: dict[str, float | None] = field(default_factory=dict)  # of a name: its greatest bearer's
    entities: int = 0
    described: frozenset[str] = frozenset()  # names of which a bearer has a description

    def quarters(self) -> list[float]:
        """The three popularities that cut the knowledge base's names in four; empty: none are given."""
        given = [value for value in self.popularity.values() if value is not None]
        return [float(q) for q in np.quantile(given, [0.25, 0.5, 0.75])] if given else []


def known(train: Sequence[str] = (), entities: Iterable[Named] = ()) -> Known:
    """Read both; of a training mention only its string and its target's name are kept."""
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
    """The entities of a file, as build reads them. Raises ValueError where it holds none."""
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
    """The entities of a workspace. Raises ValueError where it is none."""
    from gemel_ray.knowledge.entities import Entities
    from gemel_ray.knowledge.versions import current_folder, read_facts

    read_facts(folder)
    table: Any = Entities.open(current_folder(folder) / "entities.arrow").table
    for batch in table.select(["name", "popularity", "description"]).to_batches():
        described = pc.greater(pc.fill_null(pc.utf8_length(batch["description"]), 0), 0)
        columns = (batch["name"], batch["popularity"], described)
        yield from map(Named, *(column.to_pylist() for column in columns))
