"""What a study compares: groups of cells, each the base run with one thing changed (paper, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.ranking.features import GROUPS as EVIDENCE
from gemel_ray.ranking.towers import NEGATIVES, Negatives


@dataclass(frozen=True)
class Cell:
    """`settings` as --set takes them; `variant` of the documents (variants.py); `prefix`: visual vectors per
    picture, by a mapper trained for the cell, 0 for the workspace's mapper; `needs_pictures`: the cell is
    left out if the documents have none.

    The ranker is fitted again for a cell `without` one of its evidences (ranking/features.py), with a
    `retrieval` that is taught with these negatives, or with another `seed`. `joins`: its weight beside the
    language model is learned on the dev files."""

    name: str
    settings: tuple[str, ...] = ()
    variant: str = "clean"
    prefix: int = 0
    needs_pictures: bool = False
    without: str = ""
    retrieval: Negatives | None = None
    seed: int = 0
    joins: bool = False

    @property
    def fits(self) -> bool:
        """Whether a ranker is fitted for it."""
        return bool(self.without or self.retrieval or self.seed)


def _each(setting: str, *values: object) -> tuple[Cell, ...]:
    return tuple(Cell(str(v), (f"{setting}={v}",)) for v in values)


_NOT_SHARED = "retrieve.shared_sets=0"  # each mention is shown its nearest examples
BASE = Cell("as configured")
GROUPS: dict[str, tuple[Cell, ...]] = {
    "demonstrations": _each("retrieve.demonstrations", 0, 1, 4, 8, 16),
    "sets": (
        Cell("not shared", (_NOT_SHARED,)),
        *(
            Cell(f"{n:,} shared", (f"retrieve.shared_sets={n}", "retrieve.nearest=0"))
            for n in (1, 64, 512, 4096)
        ),
        *(
            Cell(f"1 shared, {n} nearest", ("retrieve.shared_sets=1", f"retrieve.nearest={n}"))
            for n in (1, 4)
        ),
    ),
    "retrieval": (
        Cell("random", ("retrieve.by=random", "retrieve.official_order=false", _NOT_SHARED)),
        Cell("mention", ("retrieve.by=mention", _NOT_SHARED)),
        Cell(
            "image", ("retrieve.by=image", "retrieve.official_order=false", _NOT_SHARED), needs_pictures=True
        ),
        Cell(
            "fused", ("retrieve.by=fused", "retrieve.official_order=false", _NOT_SHARED), needs_pictures=True
        ),
    ),
    "pictures": (
        Cell("right", needs_pictures=True),
        Cell("of another caption", variant="shuffled", needs_pictures=True),
        Cell("for retrieval only", ("assemble.images=false",), needs_pictures=True),
        Cell("absent", ("assemble.images=false",), variant="blind", needs_pictures=True),
    ),
    "prefix": tuple(Cell(str(k), prefix=k, needs_pictures=True) for k in (1, 2, 4, 8)),
    "names": tuple(Cell(str(n).lower(), (f"retrieve.names={str(n).lower()}",)) for n in (True, False)),
    "neighbours": _each("generate.neighbour_weight", 0.0, 0.25, 0.5, 0.75, 1.0),
    "ranking": _each("generate.ranking", 0.0, 0.5, 0.7, 0.9, 1.0),
    "parts": (
        Cell("without the language model", ("generate.ranking=1",)),
        Cell("without the ranker", ("retrieve.ranking=0",)),
        Cell("without ranker and votes", ("retrieve.ranking=0", "generate.neighbour_weight=0")),
        Cell("without demonstrations and votes", ("retrieve.demonstrations=0",)),
        Cell("without pictures", ("assemble.images=false",), variant="blind", needs_pictures=True),
        Cell("without reasons", ("retrieve.why=false",)),
        Cell("descriptions hidden", ("retrieve.descriptions=false",)),
    ),
    "evidence": (
        Cell("fitted with another seed", seed=1),
        *(Cell(f"without {group.name}", without=group.name) for group in EVIDENCE),
    ),
    "options": (
        Cell("language model always asked", ("generate.sure=1",)),
        Cell("weights learned on --dev", joins=True),
        Cell("more candidates judged", ("generate.judged=0.01",)),
        Cell("choice among 5", ("generate.rerank=5",)),
        Cell("choice among 5, weights learned", ("generate.rerank=5",), joins=True),
    ),
    "trained": (
        *(Cell(f"retrieval, {negatives}", retrieval=negatives) for negatives in NEGATIVES),
        Cell("retrieval, hard, as a source", ("retrieve.retrieved=10",), retrieval="hard"),
    ),
    "search": (
        Cell("greedy", ("generate.beams=1", "generate.search=beam", "generate.prior_weight=0")),
        Cell("5 beams", ("generate.beams=5", "generate.search=beam")),
        Cell("exact", ("generate.beams=5", "generate.search=exact")),
    ),
    "score": tuple(
        Cell(
            f"{score}, length penalty {penalty:g}" + (f", prior {prior:g} off" if prior else ""),
            (
                f"generate.score={score}",
                f"generate.length_penalty={penalty}",
                f"generate.prior_weight={prior}",
                "generate.neighbour_weight=0",
            ),
        )
        for score, penalty, prior in (
            *((s, p, 0.0) for s in ("paper", "tree") for p in (0.0, 0.5, 1.0)),
            *(("tree", 0.0, w) for w in (0.25, 0.5, 1.0)),
        )
    ),
    "noise": (
        Cell("clean"),
        Cell("typos in the caption", variant="caption-typos"),
        Cell("typos in the mention", variant="mention-typos"),
        Cell("slips in the mention", variant="mention-slips"),
        Cell("mentions spelled in another way", variant="respelled"),
        Cell("mentions without accents", variant="without-accents"),
        Cell("mentions in capitals", variant="capitals"),
        Cell("mentions by their last words", variant="last-word"),
        Cell("mentions by their initials", variant="initials"),
        Cell("picture of another caption", variant="shuffled", needs_pictures=True),
        Cell("picture damaged", variant="damaged", needs_pictures=True),
    ),
}
