"""A version's successor: entities, their names in tree and bank, demonstrations and vectors.

Nothing is trained, and the language model is not loaded: its tokenizer is enough. Only what is new is
encoded; the rest of tree, bank and vectors is copied row by row. `NextVersion` does not know which version is
in use, nor check the change: see `change`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import bank as bank_file
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import prefix_tree, thumbnails, vector_stores, versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities, Entity, EntityChanges, Targets
from gemel_ray.knowledge.versions import linked, read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.knowledge.writing import (
    BankWriter,
    Made,
    encoded,
    forms,
    index,
    longest_name,
    name_examples,
    seal,
    usable_demonstrations,
)
from gemel_ray.progress import Meter
from gemel_ray.ranking.making import renew
from gemel_ray.ranking.triples import Triple, Triples
from gemel_ray.readers import count, documents
from gemel_ray.records import Row
from gemel_ray.storage import new_folder

TIME = "%Y-%m-%d %H:%M"
_OF_ONE_VERSION = ("version", "vectors", "collection", "former", "made", "changes")  # of workspace.json


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a new version differs from the former one. `entities` as entity_files.read yields them; `aliases`
    by the entity's id; `demonstrations`: files of solved documents; `triples`: facts for the knowledge
    graph."""

    entities: Sequence[Entity] = ()
    removed: Sequence[str] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    demonstrations: Sequence[str] = ()
    triples: Sequence[Triple] = ()


def rows_of(workspace: Workspace, ids: Iterable[str]) -> list[Entity]:
    table = workspace.entities.table
    rows: list[Entity] = table.filter(pc.is_in(table["id"], pa.array(list(ids), pa.string()))).to_pylist()
    return rows


class NextVersion:
    """Writes one version into the folder `inside`, and its vectors, if there is a Qdrant server, into
    `collection`."""

    def __init__(
        self,
        former: Workspace,
        config: Config,
        wanted: Change,
        version: str,
        inside: Path,
        collection: str,
    ) -> None:
        self.former, self.config, self.wanted, self.version, self.inside = (
            former, config, wanted, version, inside,
        )  # fmt: skip
        self.collection = vector_stores.record(collection)
        self.made, self.repeated = Made(), 0

    def write(self) -> list[str]:
        """Fill the folder; return lines on what changed."""
        former = self.former
        facts = {k: v for k, v in former.facts.items() if k not in _OF_ONE_VERSION}
        self._entities()
        bank, vectors = self._bank()
        collection = vector_stores.record(vector_stores.recorded(former.facts))
        if vectors == self.version:
            collection = self.collection
            workspace = Workspace(
                former.folder, former.sections, facts | collection, self.version, self.inside
            )
            facts["multiplicity"] = index(bank, workspace.new_vectors)
        if former.ranks:
            ranking, facts_added = self.inside / "ranking", self.wanted.triples
            renew(former, self.config, ranking, bank, self.entities, self.changes, facts_added)
        facts |= {"demonstrations": bank.examples, "names": len(bank) - bank.examples}
        facts["pictures"] = len(bank.image_vectors)
        if former.features is not None:
            shutil.copytree(former.inside / "features", self.inside / "features", copy_function=linked)
        changes = self._summary(bank.examples - former.bank.examples)
        history = {"former": former.knowledge, "made": time.strftime(TIME), "changes": changes}
        seal(self.inside, facts, vectors=vectors, **history, **collection)
        return changes

    def _entities(self) -> None:
        former, wanted = self.former, self.wanted
        table = former.entities.table
        gone, aliased = (_rows_with(table, ids) for ids in (wanted.removed, wanted.aliases))
        self.changes = EntityChanges(gone, np.setdiff1d(aliased, gone))
        stay, kept = self.changes.staying(table), self.changes.kept(0, len(table))
        new = pa.Table.from_pylist(list(wanted.entities), entity_file.SCHEMA)
        with_aliases = _aliased(stay, self.changes.now(self.changes.aliased), wanted.aliases)
        self.entities = entity_file.save(
            pa.concat_tables([with_aliases, new]), self.inside / "entities.arrow"
        )
        names = [entity["name"] for entity in wanted.entities]
        if len(gone) or names:
            prefix_tree.revised(former.tree, kept, names, former.tokenize, self.inside / "tree")
        else:
            shutil.copytree(former.tree_folder, self.inside / "tree", copy_function=linked)

    def _bank(self) -> tuple[Bank, str]:
        """The new bank, and the version whose vectors are those of its rows."""
        old, folder = self.former.bank, self.inside / "bank"
        with thumbnails.writing(folder) as small:
            for picture in range(len(old.image_vectors)):
                small.add(old.thumbnails.of(picture) if old.thumbnails else None)
            writer = BankWriter(self.former, self.config.bank.longest_example, small, old.image_vectors)
            examples, names = self._examples(writer), self._names(writer)
        kept = self._kept_names()
        if len(kept) == len(old) - old.examples and not examples and not names:
            shutil.rmtree(folder)
            shutil.copytree(self.former.inside / "bank", folder, copy_function=linked)
            return Bank.open(folder), self.former.facts.get("vectors", versions.FIRST)
        new, vectors = writer.mention_vectors, old.mention_vectors
        parts = [vectors[: old.examples], *new[: len(examples)], vectors[kept], *new[len(examples) :]]
        bank = bank_file.write(
            [old.table.slice(0, old.examples), *examples],
            [old.table.take(kept), *names],
            writer.pictures(),
            np.concatenate([part for part in parts if len(part)] or [np.empty((0, 1), np.float32)]),
            folder,
        )
        return bank, self.version

    def _kept_names(self) -> npt.NDArray[np.int64]:
        """Rows of the former bank that are names of entities that stay."""
        bank, removed = self.former.bank, set(self.wanted.removed)
        if not removed:
            return np.arange(bank.examples, len(bank))
        ids = bank.table["id"].slice(bank.examples).to_pylist()
        stays = [identity.rpartition("/")[0] not in removed for identity in ids]
        return bank.examples + np.flatnonzero(stays)

    def _examples(self, writer: BankWriter) -> list[pa.Table]:
        """The bank's rows of the new demonstrations, without those that it has already."""
        if not self.wanted.demonstrations:
            return []
        known, fetch = Targets(self.entities), self.config.input.fetch_official_images
        given = (t for f in self.wanted.demonstrations for t in documents(f, fetch_official_images=fetch))
        tables = []
        with Meter("documents", sum(count(f) or 0 for f in self.wanted.demonstrations)) as meter:
            for table in encoded(self.former, self.config, given, meter):
                if new := self._without_known(usable_demonstrations(table, known, self.made)):
                    tables.append(writer.table(new))
        if not tables and not self.wanted.entities:
            why = "; ".join(self.made.rejects.first[:3]) or f"all {self.repeated:,} are there already"
            raise Mistake(f"no demonstration is new: {why}; nothing was changed")
        return tables

    def _without_known(self, solved: list[Row]) -> list[Row]:
        bank = self.former.bank
        new = [row for row in solved if row["target"] not in map(bank.target, self._repeats(row))]
        self.repeated += len(solved) - len(new)
        return new

    def _repeats(self, row: Row) -> list[int]:
        """The bank's examples of the same mention, text and picture."""
        picture = row["image_vector"]
        seen = None if picture is None else np.array(picture, np.float32)
        return self.former.bank.same([row["text"]], [row["mention"]], [seen])[0]

    def _names(self, writer: BankWriter) -> list[pa.Table]:
        """The bank's rows of the new names, if it has names as examples."""
        wanted = self.wanted
        if not self.former.facts["names"]:
            return []
        aliased = ((e, a) for e in rows_of(self.former, wanted.aliases) for a in wanted.aliases[e["id"]])
        new = list(chain(forms(wanted.entities), aliased))
        if not new:
            return []
        known, made = Targets(self.entities), Made()
        with Meter("names", len(new)) as meter:
            solved = [
                usable_demonstrations(t, known, made)
                for t in encoded(self.former, self.config, name_examples(new), meter)
            ]
        if made.rejects.count:
            raise Mistake(f"{made.rejects.first[0]}; nothing was changed")
        return [writer.table(rows) for rows in solved if rows]

    def _summary(self, examples: int) -> list[str]:
        """Lines on what changed."""
        wanted = self.wanted
        lines = _counted("entities added", [f"{e['id']} ({e['name']})" for e in wanted.entities])
        lines += _counted("entities removed", list(wanted.removed))
        lines += _counted("triples added", [f"{t.head} {t.relation}" for t in wanted.triples])
        lines += _counted("aliases added", [f"{i} {a!r}" for i, some in wanted.aliases.items() for a in some])
        if wanted.demonstrations:
            left = {"there already": self.repeated, "left out": self.made.rejects.count}
            left["with a target that is not an entity's name"] = self.made.unknown_targets
            beside = "".join(f", {number:,} {what}" for what, number in left.items() if number)
            lines.append(f"{examples:,} demonstrations added{beside}")
        return lines


def _rows_with(table: pa.Table, ids: Iterable[str]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(pc.is_in(table["id"], pa.array(list(ids), pa.string())).to_numpy())


def _aliased(
    table: pa.Table, places: npt.NDArray[np.int64], aliases: Mapping[str, Sequence[str]]
) -> pa.Table:
    """The entities with these aliases added, by their ids, to those in some places."""
    rows = Entities(table).at(places).to_pylist()
    for row in rows:
        row["aliases"] = [*(row["aliases"] or ()), *aliases[row["id"]]]
    return entity_file.replaced(table, places, pa.Table.from_pylist(rows, entity_file.SCHEMA))


def _counted(what: str, items: list[str]) -> list[str]:
    more = ", ..." if len(items) > 3 else ""
    return [f"{len(items):,} {what}: {', '.join(items[:3])}{more}"] if items else []


# Changes of a workspace's knowledge while it serves: checked, made one at a time, rolled back.
#
# A change is checked before anything is written, and a version becomes current when it is complete.


Say = Callable[[str], None]


def change(folder: Path, config: Config, wanted: Change, say: Say) -> str:
    """Make the workspace's next version and make it current; return its number.

    Raises ValueError for what cannot be done; then nothing is changed. Concurrent changes wait for each
    other: each begins with the result of the one before.
    """
    with versions.locked(folder, say):
        former = Workspace.open(folder, config)
        _check(former, config, wanted)
        version = versions.following(folder)
        began = time.perf_counter()
        ledger, at = vector_stores.Ledger(folder), versions.folder(folder, version)
        with vector_stores.new_collection(config.vectors, say) as collection, new_folder(at) as inside:
            ledger.add(collection)
            changes = NextVersion(former, config, wanted, version, inside, collection).write()
            versions.share(versions.folder(folder, former.knowledge), inside, without="vectors")
        versions.use(folder, version)
        ledger.tidy(config.vectors, say)
    say(f"version {version}: {'; '.join(changes)}; {time.perf_counter() - began:.1f} s")
    return version


def rollback(folder: Path, version: str | None, say: Say) -> str:
    """Make `version` current, or, if it is None, the one that the current was made from; return its number.
    Raises ValueError if there is no such version."""
    with versions.locked(folder, say):
        to = version or read_facts(folder).get("former")
        if to is None:
            raise Mistake(f"{folder} is at its first version: there is none before it")
        versions.use(folder, to)
    say(f"version {to} is current")
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
    """Raise ValueError for an unknown id, for an id or alias that exists already, and for a name that is too
    long."""
    new = [e["id"] for e in wanted.entities]
    known = {e["id"] for e in rows_of(former, [*new, *wanted.removed, *wanted.aliases])}
    _refuse([i for i in new if i in known], "there already: remove it first, or give it an alias")
    _refuse([i for i, times in Counter(new).items() if times > 1], "given twice")
    _refuse(
        [i for i in (*wanted.removed, *wanted.aliases) if i not in known],
        "not in the knowledge base (an entity is given by its id, not by its name)",
    )
    if wanted.triples and not (former.ranks and Triples.exists(former.ranking_folder)):
        raise Mistake(
            f"{former.folder} was built without --triples, and its ranker reads none: build it again with "
            "them; nothing was changed"
        )
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
