"""gemel-ray train."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, folder
from gemel_ray.commands import configured, say


def add(verb: Parser) -> None:
    """Train the feature mapper, the one trained part: image features to visual prefixes.

    Prompts are made as link makes them, an example never demonstrating itself. The mapper that names most of
    DEV right goes into the workspace. Killed at any time, the same command goes on; other settings start
    anew. WORKSPACE/training holds the curve (curve.svg, curve.json, logs for TensorBoard), WORKSPACE/cache
    what was encoded, which another training takes from there.

      gemel-ray train --train train.parquet --dev dev.parquet --workspace my-workspace
    """
    verb.add_argument(
        "--train", nargs="+", required=True, metavar="FILE", help="solved documents with pictures"
    )
    verb.add_argument("--dev", nargs="+", required=True, metavar="FILE", help="others, to choose by")
    verb.add_argument("--workspace", required=True, type=folder, help="made by gemel-ray build")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.readers import files
    from gemel_ray.training import train

    config = configured(options, read_facts(options.workspace)["settings"])
    train(config, files(options.train, say), files(options.dev, say), options.workspace, say)
    return 0
