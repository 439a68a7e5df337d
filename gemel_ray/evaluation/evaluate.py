"""The evaluation of one run: from its links and the gold files to one dictionary of figures.

The JSON, the table in the terminal and the page all show this dictionary, and compute nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from gemel_ray.errors import Mistake
from gemel_ray.evaluation.baseline import Baseline
from gemel_ray.evaluation.breakdowns import breakdowns
from gemel_ray.evaluation.calibration import calibration
from gemel_ray.evaluation.figures import difference, headline, popularity, resampling, with_nil
from gemel_ray.evaluation.judged import NIL, Judged, Key, gold_mentions, key, links_of
from gemel_ray.evaluation.known import Known
from gemel_ray.evaluation.plain import Figures, PlainBaseline, PlainCalibration, PlainEvaluation
from gemel_ray.evaluation.resampling import Figure
from gemel_ray.evaluation.table import evaluation_text
from gemel_ray.job.results import tables
from gemel_ray.knowledge.entities import Targets
from gemel_ray.readers.fields import normal, short
from gemel_ray.records import Row
from gemel_ray.storage import Place


@dataclass(frozen=True)
class Evaluation:
    """The judged mentions: those with a target, and separately those whose gold is NIL. `without_target`: the
    number of gold mentions without a target, NIL or not known."""

    judged: Sequence[Judged]
    without_target: int
    nil: Sequence[Judged] = ()
    known: Known = field(default_factory=Known)
    output: Place | None = None  # the folder of links and the gold files, from which a page shows details
    gold: Sequence[str] = ()
    ranked: Mapping[Key, Row] | None = None  # answers of the workspace's ranker without a language model
    undescribed: Mapping[Key, Row] | None = None  # the same with all descriptions hidden

    def part(self, prefix: str) -> Evaluation:
        """The evaluation of only the documents whose id begins with `prefix`."""
        kept, nil = (
            [j for j in some if j.gold["document_id"].startswith(prefix)] for some in (self.judged, self.nil)
        )
        return replace(self, judged=kept, nil=nil, without_target=len(nil))

    @cached_property
    def accuracy(self) -> float:
        return sum(j.right for j in self.judged) / max(1, len(self.judged))

    def figures(self) -> PlainEvaluation:
        """All figures, ready for JSON."""
        return self._figures

    @cached_property
    def _figures(self) -> PlainEvaluation:
        head = _plain(headline(self.judged) | with_nil([*self.judged, *self.nil]))
        return {
            "mentions": len(self.judged),
            "accuracy": head["accuracy"]["value"],
            "interval_95": head["accuracy"]["interval_95"],
            "among_candidates": head["among_candidates"]["value"],
            "statuses": dict(Counter(j.status for j in self.judged)),
            "without_target": self.without_target,
            "gold_nil": len(self.nil),
            "documents": resampling(self.judged).count,
            "entities": self.known.entities or None,
            "headline": head,
            "breakdowns": _plain_breakdowns(self.judged, self.known),
            "popularity": _plain(popularity(self.judged, self.known)) if self.known.targets else None,
            "calibration": _plain_calibration(self.judged),
            "baseline": self._baseline(),
            "fingerprints": self.fingerprints,
        }

    def _baseline(self) -> PlainBaseline | None:
        """The figures of a linker without a language model on the same mentions: the workspace's ranker, else
        names and the training mentions' targets. None if there is neither."""
        if self.ranked is None and not (self.known.targets and self.known.entities):
            return None
        judged, nil = self._without_model(self.judged), self._without_model(self.nil)
        head = _plain(headline(judged))
        baseline: PlainBaseline = {
            "linker": "names" if self.ranked is None else "ranker",
            "headline": head,
            "calibration": _plain_calibration(judged),
            "accuracy": head["accuracy"],
            "accuracy_with_nil": with_nil([*judged, *nil])["accuracy_with_nil"].plain(),
            "difference": difference(self.judged, judged).plain(),
            "breakdowns": _plain_breakdowns(judged, self.known),
            "popularity": _plain(popularity(judged, self.known)),
        }
        if self.ranked is not None:
            baseline["all_candidates"] = head["among_candidates"]
        if self.undescribed is not None:
            hidden = [Judged(j.gold, self.undescribed.get(j.key)) for j in self.judged]
            baseline["undescribed"] = headline(hidden)["accuracy"].plain()
        return baseline

    def _without_model(self, mentions: Sequence[Judged]) -> list[Judged]:
        if self.ranked is None:
            return Baseline(self.known).judged(mentions)
        return [Judged(j.gold, self.ranked.get(j.key)) for j in mentions]

    @cached_property
    def fingerprints(self) -> list[str]:
        """The fingerprints of the judged links; several if not all links were made in the same way."""
        found = {j.link["fingerprint"] for j in [*self.judged, *self.nil] if j.link}
        return sorted(f for f in found if f is not None)

    def table(self) -> str:
        """The figures as text for the terminal."""
        return evaluation_text(self.figures())


def evaluate(
    output: Place,
    gold: Iterable[str],
    known: Known | None = None,
    targets: Targets | None = None,
    ranked: Mapping[Key, Row] | None = None,
    undescribed: Mapping[Key, Row] | None = None,
) -> Evaluation:
    """Compare the links in `output` (written by `gemel-ray link`) with the gold files. `targets` has the
    names of targets that are given by id; `ranked` the answers of the ranker alone, `undescribed` those
    without descriptions (ranked.py). Raises ValueError if there are no links, if they are of other documents,
    or if no gold mention has a target."""
    gold = list(gold)
    mentions = list(gold_mentions(gold))
    links = links_of(output, {key(row) for row in mentions})
    known_names = targets or _names_in(links.values())
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
    if not links:
        raise Mistake(_of_others(output, gold, mentions[0]))
    nil, without = [j for j in every if j.nil], len(every) - len(judged)
    return Evaluation(judged, without, nil, known or Known(), output, gold, ranked, undescribed)


def _of_others(output: Place, gold: Sequence[str], mention: Row) -> str:
    """The message that the links and gold have no mention in common."""
    linked = next((row for t in tables(output, ["document_id", "mention_id"]) for row in t.to_pylist()), None)
    there = f"{output} has {_shown(linked)}, for example, and" if linked else f"{output} has no rows, and"
    return (
        f"{there} {', '.join(gold[:3])} {_shown(mention)}: no mention is in both. Mentions are compared by "
        "their document's id (a field id, else file and row) and their place: link the file that you give as "
        "--gold"
    )


def _shown(mention: Row) -> str:
    return f"{mention['mention_id']} of document {short(mention['document_id'])}"


def _names_in(links: Iterable[Row]) -> Targets:
    """The names in the links: without a knowledge base they show how names are spelled."""
    names = {name for link in links for name in (link["entity"], *link["ranked"]) if name is not None}
    return Targets((name, name) for name in names)


def _by_id(mentions: Iterable[Row]) -> bool:
    return any(row["target_id"] not in (None, NIL) for row in mentions)


def _plain(figures: Mapping[str, Figure]) -> Figures:
    return {name: figure.plain() for name, figure in figures.items()}


def _plain_breakdowns(judged: Sequence[Judged], known: Known) -> dict[str, Figures]:
    return {name: _plain(table) for name, table in breakdowns(judged, known).items()}


def _plain_calibration(judged: Sequence[Judged]) -> PlainCalibration | None:
    found = calibration(judged)
    return found.plain() if found else None
