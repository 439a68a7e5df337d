"""gemel-ray build."""

from __future__ import annotations

import argparse

from gemel_ray.arguments import Parser, folder
from gemel_ray.commands import configured, say


def add(verb: Parser) -> None:
    """Make a WORKSPACE from your entities and solved examples: prefix tree, demonstration bank, vectors.

    --entities: JSON lines, Parquet, CSV or TSV, compressed or not, with id and name, and where known
    description, aliases, popularity, image; or Wikidata's JSON dump.

    --demonstrations: documents whose mentions have a target (the entity's name or id), in any form that link
    reads.

    --triples: JSON lines, TSV or CSV, compressed or not, with head, relation and tail: ids of the knowledge
    graph's entities. A tail may be a text (tail_label). The ranker then sees which facts a text mentions.

      gemel-ray build --entities kb.jsonl --demonstrations train.json --output my-workspace
    """
    verb.add_argument("--entities", required=True, metavar="FILE", help="entities: file or folder")
    verb.add_argument(
        "--demonstrations", nargs="+", default=[], metavar="FILE", help="solved examples: files or folders"
    )
    verb.add_argument("--triples", metavar="FILE", help="knowledge graph: file of head, relation, tail")
    verb.add_argument("--output", required=True, type=folder, metavar="WORKSPACE", help="folder to create")
    verb.add_argument("--replace", action="store_true", help="replace an existing workspace")
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
        say(
            f"{made.unknown_targets:,} demonstrations have a target that is not an entity's name or id (kept)"
        )
    if made.doubtful_targets:
        say(f"{made.doubtful_targets:,} targets are a name and another entity's id: taken as the name")
    print(options.output)
    return 0
