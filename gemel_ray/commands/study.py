"""gemel-ray study."""

from __future__ import annotations

import argparse
from functools import partial

from gemel_ray.arguments import Parser, folder, place
from gemel_ray.commands import configured, say
from gemel_ray.errors import Mistake


def add(verb: Parser) -> None:
    """Measure what each part of the configuration contributes: the paper's ablations, and robustness.

    It links the same documents many times, each time with one thing changed, and compares: number of
    demonstrations, how they are found, pictures right, wrong and absent, prefix length, search, score, noise
    in captions, mentions and pictures, parts left out one by one (language model, ranker, votes, pictures),
    evidence left out (the ranker is fitted without it), a trained retrieval added, and options that are off
    by default. Where the ranker answers most mentions, groups about the language model show more with
    --set retrieve.ranking=0, and evidence is cheaper to measure with --set generate.ranking=1.

    Each run is a folder of links under DIR/runs. Run the same command again to do what is missing; rows of
    other groups (--only) with the same base stay. Results: a table with accuracy and cost of each row,
    DIR/study.json, study.html and study.md.

      gemel-ray study --gold dev.json --train train.json --workspace kb --output study --limit 300
      gemel-ray study --gold dev.json --workspace kb --output study --only score search
    """
    verb.add_argument("--gold", nargs="+", required=True, metavar="FILE", help="documents with targets")
    verb.add_argument("--workspace", required=True, type=place, help="workspace that gemel-ray build made")
    verb.add_argument("--output", required=True, type=folder, metavar="DIR", help="output folder")
    verb.add_argument(
        "--train", nargs="+", default=[], metavar="FILE", help="training files, to distinguish seen targets"
    )
    verb.add_argument(
        "--dev",
        nargs="+",
        default=[],
        metavar="FILE",
        help="dev files, to choose mappers and joining weights by; documents that are measured are left out",
    )
    verb.add_argument(
        "--limit", type=int, default=300, help="documents to draw at random; 0: all (default: 300)"
    )
    verb.add_argument("--only", nargs="+", metavar="GROUP", help="measure only these groups")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray import storage
    from gemel_ray.readers import files
    from gemel_ray.study import GROUPS, study
    from gemel_ray.study.page import write_page
    from gemel_ray.study.run import Study
    from gemel_ray.study.table import lines, markdown

    unknown = [g for g in options.only or () if g not in GROUPS]
    if unknown:
        raise Mistake(f"there is no group {unknown[0]}; there are {', '.join(GROUPS)}")
    gold, train, dev = (files(some, say) for some in (options.gold, options.train, options.dev))
    plan = Study(options.workspace, options.output, gold, train, dev, options.limit)
    groups = options.only or list(GROUPS)
    rows = study(plan, groups, partial(configured, options), say)
    print("\n".join(lines(rows)))
    write_page(rows, options.output / "study.html")
    storage.write(options.output / "study.md", markdown(rows))
    print(options.output / "study.html")
    return int(any(cell["group"] in groups for cell in rows["failed"]))
