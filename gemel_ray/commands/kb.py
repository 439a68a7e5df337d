"""gemel-ray kb."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemel_ray.arguments import Parser, add_verbs, folder
from gemel_ray.commands import configured, say
from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.knowledge.next_version import Change


def add(verb: Parser) -> None:
    """Change a workspace's knowledge, without training: every change is a new version of it.

    What serves the workspace takes over the current version within seconds; a job that runs ends with the
    version it began with. Versions stay until they are removed by hand. Each of
    these verbs also takes --config and, where it reads settings, --set.

      gemel-ray kb add --workspace my-workspace --id Q95 --name Google --alias "Google LLC"
      gemel-ray kb add --workspace my-workspace --entities new.jsonl --demonstrations solved.json
      gemel-ray kb rollback --workspace my-workspace
    """
    verbs = {"add": _add, "remove": _remove, "alias": _alias, "list": _list, "rollback": _rollback}
    add_verbs(verb, "action", verbs)


def _add(verb: Parser) -> None:
    """Add entities, of a file or one by its id and name, and solved examples."""
    _workspace(verb, _run_add)
    verb.add_argument("--entities", metavar="FILE", help="as build reads them")
    verb.add_argument("--id", help="of one entity")
    verb.add_argument("--name", help="its name")
    verb.add_argument("--alias", action="append", default=[], metavar="NAME", help="may be given often")
    verb.add_argument("--description")
    verb.add_argument("--image", metavar="FILE", help="a picture of it: path or URL")
    verb.add_argument("--demonstrations", nargs="+", default=[], metavar="FILE", help="solved documents")


def _remove(verb: Parser) -> None:
    """Remove entities: their names are written no more. Solved examples stay."""
    _workspace(verb, _run_remove)
    verb.add_argument("ids", nargs="+", metavar="ID")


def _alias(verb: Parser) -> None:
    """Give an entity further names by which it is found; what is written stays its name."""
    _workspace(verb, _run_alias)
    verb.add_argument("id", metavar="ID")
    verb.add_argument("aliases", nargs="+", metavar="ALIAS")


def _list(verb: Parser) -> None:
    """List the versions: when each was made, what changed, and which is current."""
    _workspace(verb, _run_list)
    verb.set_defaults(settings=False)
    verb.add_argument("--json", action="store_true", help="as JSON")


def _rollback(verb: Parser) -> None:
    """Make an earlier version the current one: the one given, or the one the current was made from."""
    _workspace(verb, _run_rollback)
    verb.set_defaults(settings=False)
    verb.add_argument("version", nargs="?", metavar="VERSION")


def _workspace(verb: Parser, run: Callable[[argparse.Namespace], int]) -> None:
    verb.add_argument("--workspace", required=True, type=folder, help="made by gemel-ray build")
    verb.set_defaults(run=run)


def _run_add(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.entity_files import read
    from gemel_ray.knowledge.entity_rows import entity
    from gemel_ray.knowledge.next_version import Change
    from gemel_ray.knowledge.rejects import Rejects
    from gemel_ray.readers import files

    new: list[dict[str, Any]] = []
    if options.entities:
        rejects = Rejects()
        new += read(options.entities, rejects)
        if rejects.count:
            raise Mistake(f"{rejects.first[0]}; nothing was changed")
    one = {k: getattr(options, k) for k in ("id", "name", "description", "image")}
    if options.alias or any(value is not None for value in one.values()):
        new.append(entity(one | {"aliases": options.alias}))
    if not new and not options.demonstrations:
        raise Mistake("nothing to add: give --entities, --id and --name, or --demonstrations")
    return _change(options, Change(entities=new, demonstrations=files(options.demonstrations, say)))


def _run_remove(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.next_version import Change

    return _change(options, Change(removed=options.ids))


def _run_alias(options: argparse.Namespace) -> int:
    from gemel_ray.characters import normal
    from gemel_ray.knowledge.next_version import Change

    return _change(options, Change(aliases={options.id: list(map(normal, options.aliases))}))


def _change(options: argparse.Namespace, wanted: Change) -> int:
    from gemel_ray.knowledge.updating import change
    from gemel_ray.knowledge.versions import read_facts

    config = configured(options, read_facts(options.workspace)["settings"])
    print(change(options.workspace, config, wanted, say))
    return 0


def _run_list(options: argparse.Namespace) -> int:
    from gemel_ray.knowledge.updating import history

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
    from gemel_ray.knowledge.updating import rollback

    print(rollback(options.workspace, options.version, say))
    return 0
