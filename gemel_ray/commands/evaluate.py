"""gemel-ray evaluate."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray.arguments import Parser, place
from gemel_ray.commands import say
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.job.record import Manifest
    from gemel_ray.storage import Place


def add(verb: Parser) -> None:
    """Compare links with the right answers, and with those of another run.

    --gold: documents with their mentions' targets (names, or ids of the knowledge base), in any form that
    link reads; by default the job's input. A link is right if the entity's name equals the target's, except
    for white space and Unicode's forms. A missing mention or an error counts as wrong. Mentions without a
    target are left out. Every figure has a 95% interval, by bootstrap over documents.

    With the training files and the knowledge base, the page also has accuracy by popularity and ambiguity,
    and what a linker without a language model would get: the workspace's ranker (which links the gold
    mentions for this), or, without a ranker, names and the training mentions' targets.

      gemel-ray evaluate linked
      gemel-ray evaluate linked --gold dev.json --train train.json --workspace kb --report report.html
      gemel-ray evaluate linked --gold dev.json --against linked-before
    """
    verb.add_argument("links", type=place, metavar="DIR", help="output of gemel-ray link")
    verb.add_argument(
        "--gold", nargs="+", metavar="FILE", help="documents with targets (default: the job's input)"
    )
    verb.add_argument(
        "--train", nargs="+", default=[], metavar="FILE", help="solved examples that the linker had"
    )
    knowledge = verb.add_mutually_exclusive_group()
    knowledge.add_argument("--entities", metavar="FILE", help="knowledge base, as build reads it")
    knowledge.add_argument(
        "--workspace", type=place, metavar="WORKSPACE", help="workspace that has the knowledge base"
    )
    verb.add_argument(
        "--against", type=place, metavar="DIR2", help="output of another run, to compare on the same gold"
    )
    verb.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots and mentions")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.set_defaults(run=_run, settings=False)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.evaluation import compare, evaluate, known
    from gemel_ray.evaluation.table import comparison_text
    from gemel_ray.job.record import read_manifest
    from gemel_ray.readers import files
    from gemel_ray.report import write_report

    made = read_manifest(options.links)
    gold = files(options.gold, say) if options.gold else job_inputs(made, options.links)
    targets = _targets(options, made)
    knowing = known(files(options.train, say), _entities(options))
    found = evaluate(options.links, gold, knowing, targets, *_ranked(options, gold, made))
    against = evaluate(options.against, gold, targets=targets) if options.against else None
    comparison = compare(found, against).figures() if against else None
    if options.json:
        print(json.dumps(found.figures() | ({"comparison": comparison} if comparison else {}), indent=2))
    else:
        print(found.table() + (comparison_text(comparison) if comparison else ""))
    if options.report:
        write_report(found, options.report, title=f"Links of {options.links}", comparison=comparison)
        say(str(options.report))
    return 0


def _ranked(options: argparse.Namespace, gold: list[str], made: Manifest | None) -> list[Any]:
    """The answers of the workspace's ranker, with descriptions and without."""
    from gemel_ray.evaluation.ranked import ranked_alone
    from gemel_ray.knowledge import versions
    from gemel_ray.ranking.ranking import origin

    if not options.workspace:
        return [None, None]
    found = ranked_alone(options.workspace, gold, made)
    if found[0] is not None:
        say(f"without a language model: {origin(versions.current_folder(options.workspace) / 'ranking')}")
    return found


def job_inputs(made: Manifest | None, output: Place) -> list[str]:
    """The input files of the job that wrote `output`. Raises ValueError where they are not there."""
    from gemel_ray.readers import files

    if made is None or not made.get("inputs"):
        raise Mistake(f"{output} has no manifest.json that names the job's input: give --gold FILE")
    try:
        return files(made["inputs"])
    except ValueError as gone:
        raise Mistake(
            f"the job's input is not there: {gone}; give --gold FILE, or go to the folder where link ran"
        ) from gone


def _targets(options: argparse.Namespace, made: Manifest | None) -> Any:
    """Names by ids, from the given knowledge base, else from the one that the job used, if it is there."""
    from gemel_ray.knowledge import versions
    from gemel_ray.knowledge.entities import Entities, Rejects, Targets
    from gemel_ray.knowledge.entity_files import read
    from gemel_ray.knowledge.versions import read_facts

    if options.entities:
        return Targets((row["id"], row["name"]) for row in read(options.entities, Rejects()))
    if options.workspace:
        read_facts(options.workspace)
        inside = versions.current_folder(options.workspace)
    else:
        used = made.get("workspace") if made else None
        path, knowledge = (used["path"], used["knowledge"]) if used else ("", versions.FIRST)
        inside = versions.folder(_still_there(path), knowledge)
    file = inside / "entities.arrow"
    return Targets(Entities.open(file)) if options.workspace or file.is_file() else None


def _still_there(workspace: str) -> Path:
    """The folder of a workspace; where that is gone, the current folder, which has no entities."""
    from gemel_ray.knowledge.remote import local_copy

    with suppress(OSError):
        return local_copy(workspace, say)
    return Path()


def _entities(options: argparse.Namespace) -> Iterable[Any]:
    from gemel_ray.evaluation.known import named_in, named_in_workspace

    if options.entities:
        return named_in(options.entities)
    return named_in_workspace(options.workspace) if options.workspace else ()
