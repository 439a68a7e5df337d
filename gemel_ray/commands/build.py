"""gemel-ray build."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, folder
from gemel_ray.commands import configured, say


def add(verb: Parser) -> None:
    """Make a WORKSPACE: prefix tree, demonstration bank and vectors from your entities and solved examples.

    ENTITIES: JSON lines, Parquet, CSV or TSV, packed or not, with id and name, and, where known, description,
    aliases, popularity, image; or Wikidata's JSON dump.
    DEMONSTRATIONS: documents whose mentions have a target (the entity's name or id), in any form that link
    reads.
    TRIPLES: JSON lines, TSV or CSV, packed or not, with head, relation and tail: ids of the knowledge graph's
    entities. A tail may be a text (tail_label). The ranker then sees which facts a text tells.

      gemel-ray build --entities kb.jsonl --demonstrations train.json --output my-workspace
    """
    verb.add_argument("--entities", required=True, metavar="FILE", help="file or folder: id, name, ...")
    verb.add_argument("--demonstrations", nargs="+", default=[], metavar="FILE", help="solved documents")
    verb.add_argument("--triples", metavar="FILE", help="file of head, relation, tail")
    verb.add_argument("--output", required=True, type=folder, metavar="WORKSPACE", help="folder to make")
    verb.add_argument("--replace", action="store_true", help="a workspace that is there gives way to it")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.build import build
    from gemel_ray.readers import files

    made = build(
        configured(options, {}), options.entities, files(options.demonstrations, say), options.output, say,
        triples=options.triples, replacing=options.replace,
    )  # fmt: skip
    for line in made.rejects.lines("left out"):
        say(line)
    if made.unknown_targets:
        say(f"{made.unknown_targets:,} demonstrations have a target that is no entity's name or id (kept)")
    if made.doubtful_targets:
        say(f"{made.doubtful_targets:,} targets are a name and another entity's id: taken as the name")
    print(options.output)
    return 0
