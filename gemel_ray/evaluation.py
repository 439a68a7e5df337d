"""Links against gold: accuracy as the paper counts it, with intervals.

A mention is right when the linked entity's name is the target's, letter for letter. A gold mention that
is missing from the links, an error or NIL counts as wrong. Mentions without a target are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gemel_ray import results
from gemel_ray.graph import explode
from gemel_ray.readers import documents

Key = tuple[str, str]
Row = dict[str, Any]
_GOLD = ("document_id", "mention_id", "mention", "text", "target", "image", "image_address")


@dataclass(frozen=True)
class Judged:
    """One gold mention and what was answered; `link` None: not in the output."""

    gold: Row
    link: Row | None

    @property
    def status(self) -> str:
        return self.link["status"] if self.link else "missing"

    @property
    def right(self) -> bool:
        return self.link is not None and self.link["entity"] == self.gold["target"]

    @property
    def among_candidates(self) -> bool:
        found = (self.link["candidates"] or []) if self.link else []
        return any(c["entity"] == self.gold["target"] for c in found)


@dataclass(frozen=True)
class Evaluation:
    """Everything that was judged."""

    judged: Sequence[Judged]
    without_target: int

    def part(self, prefix: str) -> Evaluation:
        """Only the documents whose id begins so."""
        kept = [j for j in self.judged if j.gold["document_id"].startswith(prefix)]
        return Evaluation(kept, 0)

    @cached_property
    def accuracy(self) -> float:
        return sum(j.right for j in self.judged) / max(1, len(self.judged))

    def figures(self) -> dict[str, Any]:
        """Accuracy with its 95% interval, how often the target is among the candidates, rows by status."""
        low, high = interval(self.accuracy, len(self.judged))
        return {
            "mentions": len(self.judged),
            "accuracy": round(self.accuracy, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "among_candidates": round(
                sum(j.among_candidates for j in self.judged) / max(1, len(self.judged)), 4
            ),
            "statuses": dict(Counter(j.status for j in self.judged)),
            "without_target": self.without_target,
        }

    def table(self) -> str:
        """The figures for people."""
        found = self.figures()
        low, high = found["interval_95"]
        rows = ", ".join(f"{n:,} {status}" for status, n in sorted(found["statuses"].items()))
        left_out = f"{found['without_target']:,} without target left out"
        return (
            f"mentions             {found['mentions']:,}  ({rows}; {left_out})\n"
            f"accuracy             {found['accuracy']:.1%}  (95% interval {low:.1%} to {high:.1%})\n"
            f"target in candidates {found['among_candidates']:.1%}"
        )


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def evaluate(output: Path, gold: Iterable[str]) -> Evaluation:
    """Judge the links in `output` (what `gemel-ray link` wrote). Raises ValueError when there are none."""
    links: dict[Key, Row] = {}
    for table in results.tables(output):
        links |= {(row["document_id"], row["mention_id"]): row for row in table.to_pylist()}
    judged, without = [], 0
    for row in gold_mentions(gold):
        if row["target"] is None:
            without += 1
        else:
            judged.append(Judged(row, links.get((row["document_id"], row["mention_id"]))))
    if not judged:
        raise ValueError("the gold files have no mention with a target")
    return Evaluation(judged, without)


def gold_mentions(files: Iterable[str]) -> Iterator[Row]:
    """The mentions of documents, one a row, with their targets (None: not known, or NIL)."""
    for file in files:
        for table in documents(file):
            exploded = explode(table.append_column("status", table["error"]), ("given",))
            yield from (r for r in exploded.select(_GOLD).to_pylist() if r["mention_id"] is not None)
