"""One run judged: from its links and the gold files to one dictionary of figures.

The JSON, the table for the terminal and the page all show that dictionary, and compute nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gemel_ray.characters import normal
from gemel_ray.errors import Mistake
from gemel_ray.evaluation.baseline import Baseline
from gemel_ray.evaluation.breakdowns import breakdowns
from gemel_ray.evaluation.calibration import calibration
from gemel_ray.evaluation.figures import difference, headline, popularity, resampling, with_nil
from gemel_ray.evaluation.judged import NIL, Judged, Key, Row, gold_mentions, key, links_of
from gemel_ray.evaluation.known import Known
from gemel_ray.evaluation.resampling import Figure
from gemel_ray.evaluation.table import told
from gemel_ray.knowledge.entities import Targets
from gemel_ray.storage import Place


@dataclass(frozen=True)
class Evaluation:
    """Everything that was judged: the mentions with a target, and apart from them those whose gold is
    NIL. `without_target` counts the gold mentions without a target, NIL or not known."""

    judged: Sequence[Judged]
    without_target: int
    nil: Sequence[Judged] = ()
    known: Known = field(default_factory=Known)
    output: Place | None = None  # where the links are, and the gold files: for what a page shows of them
    gold: Sequence[str] = ()
    ranked: Mapping[Key, Row] | None = None  # what the workspace's ranker says without a language model
    undescribed: Mapping[Key, Row] | None = None  # and with all entities' descriptions hidden

    def part(self, prefix: str) -> Evaluation:
        """Only the documents whose id begins so."""
        kept, nil = (
            [j for j in some if j.gold["document_id"].startswith(prefix)] for some in (self.judged, self.nil)
        )
        return replace(self, judged=kept, nil=nil, without_target=len(nil))

    @cached_property
    def accuracy(self) -> float:
        return sum(j.right for j in self.judged) / max(1, len(self.judged))

    def figures(self) -> dict[str, Any]:
        """All figures, ready for JSON. A figure with an interval is {value, interval_95, mentions}."""
        return self._figures

    @cached_property
    def _figures(self) -> dict[str, Any]:
        figures = headline(self.judged) | with_nil([*self.judged, *self.nil])
        plain: dict[str, Any] = _plain(figures)
        return {
            "mentions": len(self.judged),
            "accuracy": plain["accuracy"]["value"],
            "interval_95": plain["accuracy"]["interval_95"],
            "among_candidates": plain["among_candidates"]["value"],
            "statuses": dict(Counter(j.status for j in self.judged)),
            "without_target": self.without_target,
            "gold_nil": len(self.nil),
            "documents": resampling(self.judged).count,
            "entities": self.known.entities or None,
            "headline": plain,
            "breakdowns": _plain(breakdowns(self.judged, self.known)),
            "popularity": _plain(popularity(self.judged, self.known)) if self.known.targets else None,
            "calibration": _plain(calibration(self.judged)) or None,
            "baseline": self._baseline(),
            "fingerprints": self.fingerprints,
        }

    def _baseline(self) -> dict[str, Any] | None:
        """What needs no language model gets on the same mentions, and how much better the run is: the
        workspace's ranker, else names and the training mentions' targets."""
        if self.ranked is None and not (self.known.targets and self.known.entities):
            return None
        judged, nil = self._without_model(self.judged), self._without_model(self.nil)
        found: dict[str, Any] = {
            "linker": "names" if self.ranked is None else "ranker",
            "headline": headline(judged),
            "calibration": calibration(judged) or None,
            "accuracy": headline(judged)["accuracy"],
            "accuracy_with_nil": with_nil([*judged, *nil])["accuracy_with_nil"],
            "difference": difference(self.judged, judged),
            "breakdowns": breakdowns(judged, self.known),
            "popularity": popularity(judged, self.known),
        }
        if self.ranked is not None:
            found["all_candidates"] = headline(judged)["among_candidates"]
        if self.undescribed is not None:
            hidden = [Judged(j.gold, self.undescribed.get(j.key)) for j in self.judged]
            found["undescribed"] = headline(hidden)["accuracy"]
        plain: dict[str, Any] = _plain(found)
        return plain

    def _without_model(self, mentions: Sequence[Judged]) -> list[Judged]:
        if self.ranked is None:
            return Baseline(self.known).judged(mentions)
        return [Judged(j.gold, self.ranked.get(j.key)) for j in mentions]

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of the judged links; more than one: they were not all made in the same way."""
        found = {j.link["fingerprint"] for j in [*self.judged, *self.nil] if j.link}
        return sorted(f for f in found if f is not None)

    def table(self) -> str:
        """The figures for people."""
        return told(self.figures())


def evaluate(
    output: Place,
    gold: Iterable[str],
    known: Known | None = None,
    targets: Targets | None = None,
    ranked: Mapping[Key, Row] | None = None,
    undescribed: Mapping[Key, Row] | None = None,
) -> Evaluation:
    """Judge the links in `output` (what `gemel-ray link` wrote); `targets` names what the gold files tell by
    its id; `ranked` has a ranker's own answers, `undescribed` those without descriptions (ranked.py). Raises
    ValueError when there are no links, or no gold mention has a target."""
    gold = list(gold)
    mentions = list(gold_mentions(gold))
    links = links_of(output, {key(row) for row in mentions})
    known_names = targets or _written(links.values())
    for row in mentions:
        row["target"] = known_names.name(row["target"], row["target_id"])
        row["mention"] = normal(row["mention"]) if row["mention"] else row["mention"]
    every = [Judged(row, links.get(key(row))) for row in mentions]
    judged = [j for j in every if j.gold["target"] is not None]
    if not judged:
        raise Mistake(
            f"{', '.join(gold[:3])}: no mention has a target"
            + (": the targets are ids, so give the knowledge base (--entities)" if _by_id(mentions) else "")
        )
    nil, without = [j for j in every if j.nil], len(every) - len(judged)
    return Evaluation(judged, without, nil, known or Known(), output, gold, ranked, undescribed)


def _written(links: Iterable[dict[str, Any]]) -> Targets:
    """The names that the links hold: without a knowledge base what is known of how names are spelled."""
    names = {name for link in links for name in (link["entity"], *link["ranked"]) if name is not None}
    return Targets((name, name) for name in names)


def _by_id(mentions: Iterable[dict[str, Any]]) -> bool:
    return any(row["target_id"] not in (None, NIL) for row in mentions)


def _plain(value: Any) -> Any:
    """With figures as dictionaries and numbers rounded."""
    if isinstance(value, Figure):
        return value.plain()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
