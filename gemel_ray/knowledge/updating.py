"""Changes of a workspace's knowledge while it serves: checked, made one at a time, taken back.

What a change asks for is checked before anything is written, and a version becomes current when it is whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import homes, versions
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.lengths import longest_name
from gemel_ray.knowledge.next_version import TIME, Change, NextVersion, rows_of
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.storage import new_folder

Say = Callable[[str], None]


def change(folder: Path, config: Config, wanted: Change, say: Say) -> str:
    """Make the workspace's next version and make it current; returns its number.

    ValueError says plainly what cannot be done; then nothing is changed. Two changes at once wait for each
    other: each begins with what the other made.
    """
    with versions.locked(folder, say):
        former = Workspace.open(folder, config)
        _check(former, config, wanted)
        version = versions.following(folder)
        began = time.perf_counter()
        ledger, at = homes.Ledger(folder), versions.folder(folder, version)
        with homes.new_collection(config.vectors, say) as collection, new_folder(at) as inside:
            ledger.add(collection)
            changes = NextVersion(former, config, wanted, version, inside, collection).write()
            versions.share(versions.folder(folder, former.knowledge), inside, without="vectors")
        versions.use(folder, version)
        ledger.tidy(config.vectors, say)
    say(f"version {version}: {'; '.join(changes)}; {time.perf_counter() - began:.1f} s")
    return version


def rollback(folder: Path, version: str | None, say: Say) -> str:
    """Make `version` current, or, not given, the one that the current was made from; returns its number.
    ValueError: there is none such."""
    with versions.locked(folder, say):
        to = version or read_facts(folder).get("former")
        if to is None:
            raise Mistake(f"{folder} is at its first version: there is none before it")
        versions.use(folder, to)
    return to


def history(folder: Path) -> list[dict[str, Any]]:
    """All versions, oldest first: `version`, `made`, `former`, `changes`, `entities`, `demonstrations`, and
    whether it is `current`."""
    rows, current = [], versions.current(folder)
    for version in versions.known(folder):
        facts, inside = read_facts(folder, version), versions.folder(folder, version)
        built = time.localtime((inside / "workspace.json").stat().st_mtime)
        rows.append(
            {
                "version": version,
                "current": version == current,
                "made": facts.get("made", time.strftime(TIME, built)),
                "former": facts.get("former"),
                "changes": facts.get("changes", ["as built"]),
                "entities": len(Entities.open(inside / "entities.arrow")),
                "demonstrations": facts["demonstrations"],
            }
        )
    return rows


def _check(former: Workspace, config: Config, wanted: Change) -> None:
    """Raises ValueError for an id that is unknown or there already, for an alias that is, and for a name that
    is too long."""
    known: set[str] = set(former.entities.table["id"].to_pylist())
    new = [e["id"] for e in wanted.entities]
    _refuse([i for i in new if i in known], "there already: remove it first, or give it an alias")
    _refuse([i for i, times in Counter(new).items() if times > 1], "given twice")
    _refuse([i for i in (*wanted.removed, *wanted.aliases) if i not in known], "not in the knowledge base")
    refusal = longest_name(former.tokenize, config.bank.longest_name)
    if reason := next(filter(None, (refusal(e["name"]) for e in wanted.entities)), None):
        raise Mistake(f"{reason}; nothing was changed")
    for row in rows_of(former, wanted.aliases):
        have = {row["name"], *(row["aliases"] or ())}
        for alias in wanted.aliases[row["id"]]:
            if not alias.strip():
                raise Mistake(f"an alias of {row['id']} is empty; nothing was changed")
            if alias in have:
                raise Mistake(
                    f"{row['id']} ({row['name']}) has the name {alias!r} already; nothing was changed"
                )
            have.add(alias)


def _refuse(wrong: list[str], why: str) -> None:
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Mistake(f"entity {', '.join(wrong[:3])}{more} is {why}; nothing was changed")
