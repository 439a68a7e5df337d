"""gemel-ray kb."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from gemel_ray.arguments import Parser, add_verbs, folder
from gemel_ray.commands import configured, say
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.knowledge.next_version import Change
    from gemel_ray.ranking.triples import Triple


def add(verb: Parser) -> None:
    """Change a workspace's knowledge without training: every change makes a new version.

    A running endpoint switches to the current version within seconds. A running job ends with the version it
    began with. Versions stay until you delete them. Each of these verbs also takes --config and, if it reads
    settings, --set.

      gemel-ray kb add --workspace my-workspace --id Q95 --name Google --alias "Google LLC"
      gemel-ray kb add --workspace my-workspace --entities new.jsonl --triples facts.tsv
      gemel-ray kb add --workspace my-workspace --demonstrations solved.json
      gemel-ray kb rollback --workspace my-workspace
    """
    verbs = {"add": _add, "remove": _remove, "alias": _alias, "list": _list, "rollback": _rollback}
    add_verbs(verb, "action", verbs)


def _add(verb: Parser) -> None:
    """Add entities (from a file, or one by its id and name), facts and solved examples."""
    _workspace(verb, _run_add)
    verb.add_argument("--entities", metavar="FILE", help="entities to add: file or folder")
    verb.add_argument("--triples", metavar="FILE", help="facts to add to the knowledge graph, of any entity")
    verb.add_argument("--id", help="id of one entity to add")
    verb.add_argument("--name", help="name of that entity")
    verb.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="alias of that entity (repeatable)"
    )
    verb.add_argument("--description", help="description of that entity")
    verb.add_argument("--image", metavar="FILE", help="picture of that entity: path or URL")
    verb.add_argument(
        "--demonstrations", nargs="+", default=[], metavar="FILE", help="solved examples to add"
    )


def _remove(verb: Parser) -> None:
    """Remove entities: their names can no longer be written. Solved examples stay."""
    _workspace(verb, _run_remove)
    verb.add_argument("ids", nargs="+", metavar="ID", help="ids of the entities to remove")


def _alias(verb: Parser) -> None:
    """Give an entity more names by which it is found. The name that is written stays."""
    _workspace(verb, _run_alias)
    verb.add_argument("id", metavar="ID", help="id of the entity")
    verb.add_argument("aliases", nargs="+", metavar="ALIAS", help="names to add")


def _list(verb: Parser) -> None:
    """List the versions: when each was made, what changed, and which is current."""
    _workspace(verb, _run_list)
    verb.set_defaults(settings=False)
    verb.add_argument("--json", action="store_true", help="print the versions as JSON")


def _rollback(verb: Parser) -> None:
    """Make an earlier version current: VERSION, or the one that the current version was made from."""
    _workspace(verb, _run_rollback)
    verb.set_defaults(settings=False)
    verb.add_argument("version", nargs="?", metavar="VERSION", help="number of the version")


def _workspace(verb: Parser, run: Callable[[argparse.Namespace], int]) -> None:
    verb.add_argument("--workspace", required=True, type=folder, help="workspace that gemel-ray build made")
    verb.set_defaults(run=run)


def _run_add(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.entities import Entity, Rejects
    from gemel_ray.knowledge.entity_files import read
    from gemel_ray.knowledge.entity_rows import entity
    from gemel_ray.knowledge.next_version import Change
    from gemel_ray.readers import files

    new: list[Entity] = []
    if options.entities:
        rejects = Rejects()
        new += read(options.entities, rejects)
        if rejects.count:
            raise Mistake(f"{rejects.first[0]}; nothing was changed")
    one = {k: getattr(options, k) for k in ("id", "name", "description", "image")}
    if options.alias or any(value is not None for value in one.values()):
        if not (options.id and options.name):
            raise Mistake("one entity to add needs both --id and --name; nothing was changed")
        new.append(entity(one | {"aliases": options.alias}))
    facts = _facts(options.triples) if options.triples else []
    if not new and not facts and not options.demonstrations:
        raise Mistake("nothing to add: give --entities, --id and --name, --triples, or --demonstrations")
    solved = files(options.demonstrations, say)
    return _change(options, Change(entities=new, demonstrations=solved, triples=facts))


def _facts(file: str) -> list[Triple]:
    from gemel_ray.knowledge import triple_files
    from gemel_ray.knowledge.entities import Rejects

    rejects = Rejects()
    found = list(triple_files.read(file, rejects))
    if rejects.count or not found:
        raise Mistake(f"{rejects.first[0] if rejects.count else f'{file} is empty'}; nothing was changed")
    return found


def _run_remove(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.next_version import Change

    return _change(options, Change(removed=options.ids))


def _run_alias(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.next_version import Change
    from gemel_ray.readers.fields import normal

    return _change(options, Change(aliases={options.id: list(map(normal, options.aliases))}))


def _change(options: argparse.Namespace, wanted: Change) -> int:
    from gemel_ray.knowledge.next_version import change
    from gemel_ray.knowledge.versions import read_facts

    config = configured(options, read_facts(options.workspace)["settings"])
    print(change(options.workspace, config, wanted, say))
    return 0


def _run_list(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.next_version import history

    rows = history(options.workspace)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        mark = "*" if row["current"] else " "
        size = f"{row['entities']:,} entities, {row['demonstrations']:,} demonstrations"
        print(f"{mark} {row['version']:>3}  {row['made']}  {size}  {'; '.join(row['changes'])}")
    return 0


def _run_rollback(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.next_version import rollback

    print(rollback(options.workspace, options.version, say))
    return 0
