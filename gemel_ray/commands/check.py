"""gemel-ray check."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.commands import say


def add(verb: Parser) -> None:
    """Check a data set: find what is unreadable, missing, broken, repeated or also in the training files.

    INPUT: documents in any form that link reads. The documents' pictures are decoded. With --images, pictures
    that documents name by a key are looked for in that folder. Nothing is changed. Exit status: 0 if nothing
    was found, 1 if something was.

      gemel-ray check test.json --train train.json --entities kb.jsonl --images pictures
    """
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="files or folders to check")
    verb.add_argument("--entities", metavar="FILE", help="knowledge base, as build reads it")
    verb.add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="FILE",
        help="training files: find what INPUT has in common with them",
    )
    verb.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of pictures: find missing, broken and unused ones",
    )
    verb.add_argument("--json", action="store_true", help="print what was found as JSON")
    verb.set_defaults(run=_run, settings=False)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.checking import Scope, check
    from gemel_ray.readers import files, first_look

    inputs, train = files(options.inputs, say), files(options.train, say)
    for line in first_look(inputs):
        say(line)
    found = check(inputs, Scope(train=train, entities=options.entities, images=options.images), say)
    print(json.dumps(found.figures(), indent=2, ensure_ascii=False) if options.json else found.table())
    return 0 if found.clean else 1
