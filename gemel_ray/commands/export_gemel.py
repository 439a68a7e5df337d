"""gemel-ray export-gemel."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemel_ray.arguments import Parser, folder, place
from gemel_ray.commands import configured


def add(verb: Parser) -> None:
    """Write a workspace's mapper as a checkpoint for GEMEL's code: a state_dict in float16.

    The file's name holds what GEMEL's code and import-gemel read from it: language model, data set, prefix
    length and number of demonstrations.

      gemel-ray export-gemel --workspace my-workspace --dataset wikidiverse --output checkpoints
    """
    verb.add_argument("--workspace", required=True, type=place, help="workspace with a mapper")
    verb.add_argument(
        "--dataset", required=True, metavar="NAME", help="name of the data set, for the file's name"
    )
    verb.add_argument("--output", required=True, type=folder, metavar="DIR", help="folder for the file")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.gemel.exporting import export_gemel
    from gemel_ray.knowledge.versions import read_facts

    facts = read_facts(options.workspace)
    config = configured(options, facts["settings"])
    language = Path(facts["models"]["language"]).name
    shots = config.retrieve.demonstrations
    mapper = options.workspace / "mapper.safetensors"
    print(export_gemel(mapper, options.output, language, options.dataset, shots))
    return 0
