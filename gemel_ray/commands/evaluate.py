"""gemel-ray evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.commands import say


def add(verb: Parser) -> None:
    """Compare links with the right answers.

    GOLD: the documents with their mentions' targets, in any form that link reads. A mention counts as right
    when the entity's name is the target's, letter for letter; one that is missing or an error counts as
    wrong; mentions without a target are left out.

      gemel-ray evaluate linked --gold dev.json
    """
    verb.add_argument("links", type=Path, metavar="DIR", help="what link wrote")
    verb.add_argument("--gold", nargs="+", required=True, metavar="FILE", help="documents with targets")
    verb.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with every mention")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.evaluation import evaluate
    from gemel_ray.readers import files
    from gemel_ray.report import write_report

    found = evaluate(options.links, files(options.gold))
    print(json.dumps(found.figures(), indent=2) if options.json else found.table())
    if options.report:
        write_report(found, options.report, title=f"Links of {options.links}")
        say(str(options.report))
    return 0
