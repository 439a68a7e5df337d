"""Two runs on the same gold: who is right where the other is not, and whether that could be chance.

Only mentions that both runs answered are compared, and what makes the runs unlike is said: a difference
between runs on other knowledge, or on other mentions, says nothing about models or settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemel_ray.errors import Mistake
from gemel_ray.evaluation.evaluate import Evaluation
from gemel_ray.evaluation.figures import difference, headline
from gemel_ray.evaluation.judged import Judged, Row
from gemel_ray.job.record import read_manifest

_MISSING = object()


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` are the same mentions in the same order; `notes` what the reader must know."""

    ours: Sequence[Judged]
    theirs: Sequence[Judged]
    notes: Sequence[str]
    settings: dict[str, list[Any]]  # that differ: ours, theirs

    @cached_property
    def won(self) -> int:
        """Mentions only we have right."""
        return sum(a.right and not b.right for a, b in self._pairs)

    @cached_property
    def lost(self) -> int:
        """Mentions only they have right."""
        return sum(b.right and not a.right for a, b in self._pairs)

    @property
    def _pairs(self) -> Iterator[tuple[Judged, Judged]]:
        return zip(self.ours, self.theirs, strict=True)

    def chance(self) -> float:
        """McNemar's exact test, two-sided: how likely equally good runs are to be at least so far apart
        in the mentions that only one of them has right."""
        from scipy.stats import binomtest

        return float(binomtest(self.won, self.won + self.lost).pvalue) if self.won + self.lost else 1.0

    def disagreements(self) -> list[tuple[Judged, Judged]]:
        """The mentions with different answers: first those we lost, then those we won, then both wrong."""
        apart = [(a, b) for a, b in self._pairs if (a.answer, a.status) != (b.answer, b.status)]
        return sorted(apart, key=lambda pair: (not pair[1].right, not pair[0].right))

    def figures(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "mentions": len(self.ours),
            "accuracy": headline(self.ours)["accuracy"].plain(),
            "accuracy_against": headline(self.theirs)["accuracy"].plain(),
            "difference": difference(self.ours, self.theirs).plain(),
            "won": self.won,
            "lost": self.lost,
            "mcnemar_p": self.chance(),
            "notes": list(self.notes),
            "settings": self.settings,
            "disagreements": [_row(a, b) for a, b in self.disagreements()],
        }


def compare(ours: Evaluation, theirs: Evaluation) -> Comparison:
    """Two evaluations against the same gold. Raises ValueError when the runs share no mention."""
    both = [(a, b) for a, b in zip(ours.judged, theirs.judged, strict=True) if a.link and b.link]
    if not both:
        raise Mistake(f"{ours.output} and {theirs.output} have no gold mention in common: nothing to compare")
    first, second = (read_manifest(run.output) if run.output else {} for run in (ours, theirs))
    notes = [*_mentions(ours, theirs, len(both)), *_fingerprints(ours, theirs)]
    if ours.fingerprints != theirs.fingerprints:
        notes += _knowledge(first, second)
    settings = dict(_apart(first.get("configuration", {}), second.get("configuration", {})))
    return Comparison([a for a, _ in both], [b for _, b in both], notes, settings)


def _mentions(ours: Evaluation, theirs: Evaluation, both: int) -> Iterator[str]:
    only = [sum(j.link is not None for j in run.judged) - both for run in (ours, theirs)]
    if any(only):
        yield (
            f"the runs did not answer the same mentions: {only[0]:,} are only in the first and {only[1]:,} "
            f"only in the second; compared are the {both:,} that both have"
        )


def _knowledge(first: Row, second: Row) -> Iterator[str]:
    versions = [manifest.get("workspace", {}).get("version") for manifest in (first, second)]
    if None in versions:
        yield "a manifest.json is missing: whether both runs had the same knowledge is not known"
    elif versions[0] != versions[1]:
        yield (
            f"the runs had different knowledge (workspaces {versions[0]} and {versions[1]}): the difference "
            f"may be the knowledge's"
        )


def _fingerprints(ours: Evaluation, theirs: Evaluation) -> Iterator[str]:
    for name, run in (("first", ours), ("second", theirs)):
        if len(run.fingerprints) > 1:
            yield f"the {name} run's links have {len(run.fingerprints)} fingerprints: it is not a single run"
    if ours.fingerprints == theirs.fingerprints and len(ours.fingerprints) == 1:
        yield "both runs have the same fingerprint: configuration, models and knowledge are the same"


def _apart(first: Any, second: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The settings that differ, by their dotted names; None where a run has none of that name."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            inner = f"{path}.{name}" if path else name
            yield from _apart(first.get(name, _MISSING), second.get(name, _MISSING), inner)
    elif first != second:
        yield path, [None if value is _MISSING else value for value in (first, second)]


def _row(ours: Judged, theirs: Judged) -> Row:
    names = ("document_id", "mention_id", "mention", "target")
    answers = {"answer": ours.answer, "answer_against": theirs.answer}
    return (
        {name: ours.gold[name] for name in names}
        | answers
        | {"right": ours.right, "right_against": theirs.right}
    )
