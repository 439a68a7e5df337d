"""The command line. Says what each verb takes; the work is elsewhere and imported only when it is asked for.

Exit status: 0 done, 1 finished with error rows under --strict, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray.arguments import Parser, parser

if TYPE_CHECKING:
    from gemel_ray.config import Config

Verb = Callable[[argparse.Namespace], int]


def _demo(verb: Parser) -> None:
    """Link the starter's pictures with the starter's models: the whole graph in minutes, on any machine.

    Prints the first links, the accuracy with the right pictures and with shuffled ones, and the path of
    an HTML page with pictures, answers, candidates and demonstrations.
    """
    verb.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for everything it makes (demo)"
    )
    verb.add_argument("--limit", type=int, help="documents to link, instead of the whole test set")
    verb.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    from gemel_ray.starter.demo import demo

    return demo(lambda carried: _config(options, carried), options.output, options.limit)


def _build(verb: Parser) -> None:
    """Make a WORKSPACE: prefix tree, demonstration bank and vectors from your entities and solved examples.

    ENTITIES: JSON lines with id and name, and, where known, description, aliases, popularity, image.
    DEMONSTRATIONS: documents whose mentions have a target (the entity's name), as JSON lines or Parquet.

      gemel-ray build --entities kb.jsonl --demonstrations train.json --output my-workspace
    """
    verb.add_argument("--entities", required=True, metavar="FILE", help="JSON lines: id, name, ...")
    verb.add_argument("--demonstrations", nargs="+", default=[], metavar="FILE", help="solved documents")
    verb.add_argument("--output", required=True, type=Path, metavar="WORKSPACE", help="folder to make")
    verb.set_defaults(run=_run_build)


def _run_build(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.build import build

    made = build(_config(options, {}), options.entities, options.demonstrations, options.output, _say)
    for reject in made.rejects[:10]:
        _say(f"left out: {reject}")
    if len(made.rejects) > 10:
        _say(f"... and {len(made.rejects) - 10:,} more left out")
    if made.unknown_targets:
        _say(f"{made.unknown_targets:,} demonstrations have a target that is no entity's name (kept)")
    print(options.output)
    return 0


def _link(verb: Parser) -> None:
    """Link documents: the offline job on Ray Data. Run again, it does what is missing.

    INPUT: JSON lines or Parquet files (or folders of them) with id, text, image (path, URL or bytes) and
    mentions ([{start, end}]; without them the knowledge base's names are looked for), or lines in the
    official GEMEL form. Results: OUTPUT/links/*.parquet, one row a mention, and OUTPUT/manifest.json.

      gemel-ray link photos.jsonl --workspace my-workspace --output linked
    """
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="file or folder")
    verb.add_argument("--workspace", required=True, type=Path, help="made by gemel-ray build")
    verb.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    verb.add_argument("--strict", action="store_true", help="exit with 1 if any row is an error")
    verb.set_defaults(run=_run_link)


def _run_link(options: argparse.Namespace) -> int:
    from gemel_ray import results
    from gemel_ray.knowledge.workspace import Workspace, read_facts
    from gemel_ray.offline import link
    from gemel_ray.progress import Meter
    from gemel_ray.readers import count, files

    config = _config(options, read_facts(options.workspace)["settings"])
    Workspace.open(options.workspace, config)  # refuses a mismatch before anything is started
    inputs = files(options.inputs)
    results.prepare(options.output)
    done = len(results.finished(options.output))
    with Meter("documents", sum(count(f) or 0 for f in inputs) - done) as meter:
        manifest = link(config, options.workspace, inputs, options.output, meter.add)
    statuses = manifest["statuses"]
    told = ", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items())) or "nothing"
    print(f"{manifest['documents']:,} documents, {manifest['rows']:,} rows: {told}\n{options.output}")
    return 1 if options.strict and statuses.get("error") else 0


def _evaluate(verb: Parser) -> None:
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
    verb.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    from gemel_ray.evaluation import evaluate
    from gemel_ray.readers import files
    from gemel_ray.report import write_report

    found = evaluate(options.links, files(options.gold))
    print(json.dumps(found.figures(), indent=2) if options.json else found.table())
    if options.report:
        write_report(found, options.report, title=f"Links of {options.links}")
        _say(str(options.report))
    return 0


def _train(verb: Parser) -> None:
    """Train the feature mapper, the one trained part: image features to visual prefixes.

    Prompts are made as link makes them, an example never demonstrating itself. The mapper with the lowest
    loss on DEV goes into the workspace.

      gemel-ray train --train train.parquet --dev dev.parquet --workspace my-workspace
    """
    verb.add_argument(
        "--train", nargs="+", required=True, metavar="FILE", help="solved documents with pictures"
    )
    verb.add_argument("--dev", nargs="+", required=True, metavar="FILE", help="others, to choose by")
    verb.add_argument("--workspace", required=True, type=Path, help="made by gemel-ray build")
    verb.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.workspace import read_facts
    from gemel_ray.readers import files
    from gemel_ray.training import train

    config = _config(options, read_facts(options.workspace)["settings"])
    train(config, files(options.train), files(options.dev), options.workspace, _say)
    return 0


def _doctor(verb: Parser) -> None:
    """Tell in plain words what fits on this machine and what does not."""
    verb.add_argument("--workspace", type=Path, help="look at this workspace, too")
    verb.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> int:
    from gemel_ray.doctor import examine, exit_status, print_findings

    config = _config(options, {})
    findings = examine(config.plain()["models"], options.workspace, config.vectors.address)
    print_findings(findings)
    return exit_status(findings)


_VERBS: dict[str, Callable[[Parser], None]] = {
    "demo": _demo,
    "build": _build,
    "link": _link,
    "evaluate": _evaluate,
    "train": _train,
    "doctor": _doctor,
}


def _config(options: argparse.Namespace, carried: Mapping[str, Any]) -> Config:
    from gemel_ray.config import load

    usual = Path("ray_config.yaml")
    file = options.config or (usual if usual.exists() else None)
    return load(file, carried, options.set)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _quiet() -> None:
    """Libraries' own bars and notices: what matters we say ourselves. Set what you want to see."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. What the user can mend is one plain line; a fault of ours keeps its traceback."""
    options = parser(_VERBS).parse_args(arguments)
    _quiet()
    try:
        status: int = options.run(options)
    except (ValueError, OSError) as reason:
        _say(f"gemel-ray {options.verb}: {reason}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
