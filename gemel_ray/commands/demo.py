"""gemel-ray demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemel_ray.arguments import Parser, folder
from gemel_ray.commands import configured


def add(verb: Parser) -> None:
    """Link the starter's pictures with the starter's models: the whole graph in minutes, on any machine.

    It prints the first links, the accuracy with the right pictures and with shuffled ones, and the path of
    an HTML page with pictures, answers, candidates and demonstrations.

      gemel-ray demo --limit 50
    """
    verb.add_argument("--output", type=folder, default=Path("demo"), help="output folder (default: demo)")
    verb.add_argument("--limit", type=int, help="link only this many documents of the test set")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.starter.demo import demo

    return demo(lambda carried: configured(options, carried), options.output, options.limit)
