"""gemel-ray check."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemel_ray.arguments import Parser
from gemel_ray.commands import say


def add(verb: Parser) -> None:
    """Look a data set over: what cannot be read, is missing, broken, doubled or known from training.

    INPUT: documents in any form that link reads. Pictures that documents have are decoded; with --images
    those that they name by a key are looked for in the folder. Nothing is changed. Exit status: 0 when
    nothing was found, 1 when something was.

      gemel-ray check test.json --train train.json --entities kb.jsonl --images pictures
    """
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="file or folder")
    verb.add_argument("--entities", metavar="FILE", help="the knowledge base, as build reads it")
    verb.add_argument("--train", nargs="+", default=[], metavar="FILE", help="is anything of it in INPUT?")
    verb.add_argument("--images", type=Path, metavar="FOLDER", help="pictures: all there, whole, used?")
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
