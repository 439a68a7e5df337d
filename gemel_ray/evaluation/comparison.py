"""Two runs on the same gold: which of them is right where the other is wrong, and how likely by chance.

Only mentions that both runs answered are compared. Notes say how the runs differ: a difference in accuracy
between runs with different knowledge, or on different mentions, says nothing about models or settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemel_ray.errors import Mistake
from gemel_ray.evaluation.evaluate import Evaluation
from gemel_ray.evaluation.figures import difference, headline
from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.plain import Disagreement, PlainComparison
from gemel_ray.job.record import Manifest, read_manifest

_MISSING = object()


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` are the same mentions in the same order; `notes`: what the reader must know."""

    ours: Sequence[Judged]
    theirs: Sequence[Judged]
    notes: Sequence[str]
    settings: dict[str, list[Any]]  # the settings that differ: our value and theirs

    @cached_property
    def won(self) -> int:
        """The number of mentions that are right only in our run."""
        return sum(a.right and not b.right for a, b in self._pairs)

    @cached_property
    def lost(self) -> int:
        """The number of mentions that are right only in their run."""
        return sum(b.right and not a.right for a, b in self._pairs)

    @property
    def _pairs(self) -> Iterator[tuple[Judged, Judged]]:
        return zip(self.ours, self.theirs, strict=True)

    def chance(self) -> float:
        """The p-value of McNemar's exact test, two-sided: the probability that equally good runs differ at
        least as much in the mentions that only one of them has right."""
        from scipy.stats import binomtest

        return float(binomtest(self.won, self.won + self.lost).pvalue) if self.won + self.lost else 1.0

    def disagreements(self) -> list[tuple[Judged, Judged]]:
        """The mentions with different answers: first the lost, then the won, then those where both are
        wrong."""
        different = [(a, b) for a, b in self._pairs if (a.answer, a.status) != (b.answer, b.status)]
        return sorted(different, key=lambda pair: (not pair[1].right, not pair[0].right))

    def figures(self) -> PlainComparison:
        """The whole comparison, ready for JSON."""
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
            "disagreements": [_disagreement(a, b) for a, b in self.disagreements()],
        }


def compare(ours: Evaluation, theirs: Evaluation) -> Comparison:
    """Compare two evaluations with the same gold. Raises ValueError if the runs share no mention."""
    both = [(a, b) for a, b in zip(ours.judged, theirs.judged, strict=True) if a.link and b.link]
    if not both:
        raise Mistake(f"{ours.output} and {theirs.output} have no gold mention in common: nothing to compare")
    first, second = (read_manifest(run.output) if run.output else None for run in (ours, theirs))
    notes = [*_mentions(ours, theirs, len(both)), *_fingerprints(ours, theirs)]
    if ours.fingerprints != theirs.fingerprints:
        notes += _knowledge(first, second)
    configurations = [run["configuration"] if run else {} for run in (first, second)]
    settings = dict(_differing(configurations[0], configurations[1]))
    return Comparison([a for a, _ in both], [b for _, b in both], notes, settings)


def _mentions(ours: Evaluation, theirs: Evaluation, both: int) -> Iterator[str]:
    only = [sum(j.link is not None for j in run.judged) - both for run in (ours, theirs)]
    if any(only):
        yield (
            f"the runs did not answer the same mentions: {only[0]:,} are only in the first and {only[1]:,} "
            f"only in the second; the {both:,} that both have are compared"
        )


def _knowledge(first: Manifest | None, second: Manifest | None) -> Iterator[str]:
    versions = [manifest["workspace"]["version"] if manifest else None for manifest in (first, second)]
    if None in versions:
        yield "a manifest.json is missing: whether both runs had the same knowledge is not known"
    elif versions[0] != versions[1]:
        yield (
            f"the runs had different knowledge (workspaces {versions[0]} and {versions[1]}), which may "
            f"explain the difference"
        )


def _fingerprints(ours: Evaluation, theirs: Evaluation) -> Iterator[str]:
    for name, run in (("first", ours), ("second", theirs)):
        if len(run.fingerprints) > 1:
            yield f"the {name} run's links have {len(run.fingerprints)} fingerprints: it is not a single run"
    if ours.fingerprints == theirs.fingerprints and len(ours.fingerprints) == 1:
        yield "both runs have the same fingerprint: configuration, models and knowledge are the same"


def _differing(first: Any, second: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The settings that differ, by their dotted names; None if a run has no setting of this name."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            inner = f"{path}.{name}" if path else name
            yield from _differing(first.get(name, _MISSING), second.get(name, _MISSING), inner)
    elif first != second:
        yield path, [None if value is _MISSING else value for value in (first, second)]


def _disagreement(ours: Judged, theirs: Judged) -> Disagreement:
    return {
        "document_id": ours.gold["document_id"],
        "mention_id": ours.gold["mention_id"],
        "mention": ours.gold["mention"],
        "target": ours.gold["target"],
        "answer": ours.answer,
        "answer_against": theirs.answer,
        "right": ours.right,
        "right_against": theirs.right,
    }
