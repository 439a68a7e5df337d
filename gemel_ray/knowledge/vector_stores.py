"""Where a workspace's vectors are stored: written to Qdrant, and read from there or from the bank.

On a Qdrant server they are in a collection. The workspace records its name (`collection` in workspace.json),
but never an address or a key: those are in the configuration. See qdrant.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge import qdrant, versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.qdrant import EdgeStore, ServerStore
from gemel_ray.knowledge.server import SHORT_WAIT, Say, Server
from gemel_ray.knowledge.vectors import Matrices, Vectors, VectorStore
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.settings import Vectors as Options

_COLLECTION = "collection"
_AGAIN = "build the workspace again (gemel-ray build --replace)"


def opened(options: Options, facts: Mapping[str, Any], bank: Bank, folder: Path, names: bool) -> Vectors:
    """The vectors, for reading: from the bank itself if it is small enough for an exact search. With `names`,
    those of the knowledge base are found among the mentions."""
    store: VectorStore
    if options.address:
        store = ServerStore.open(Server(options), recorded(facts))
    else:
        store = Matrices(bank) if len(bank) < options.exact_below else EdgeStore.open(folder)
    joined = {"mention": "name"} if names else {}
    return Vectors(store, facts["multiplicity"], options.exact_below, joined)


def created(options: Options, facts: Mapping[str, Any], folder: Path, widths: dict[str, int]) -> Vectors:
    """A new empty store, to be filled once."""
    store: VectorStore
    if options.address:
        store = ServerStore.create(Server(options), recorded(facts), widths)
    else:
        store = EdgeStore.create(folder, widths)
    return Vectors(store, {}, options.exact_below)


def recorded(facts: Mapping[str, Any]) -> str:
    """The collection that a version records; empty if its vectors are in the workspace."""
    return str(facts.get(_COLLECTION) or "")


def record(name: str) -> dict[str, str]:
    """What a version records of a collection."""
    return {_COLLECTION: name} if name else {}


def check(folder: Path, facts: Mapping[str, Any], options: Options) -> None:
    """Raise WorkspaceError if its vectors are not where the configuration's `vectors.address` says. Contacts
    no server."""
    there, address = recorded(facts), options.address
    if not _has_vectors(facts):
        return
    if there and not address:
        called = there.rpartition("-")[0]
        why = f"its vectors are in collection {there} on a Qdrant server: set vectors.address "
        why += f"(http://HOST:6333/{called})"
    elif there and not qdrant.is_build_collection(address.rpartition("/")[2], there):
        why = f"its vectors are in collection {there}, not at vectors.address={address}"
    elif address and not there:
        why = f"its vectors lie in it, not on a server: empty vectors.address, or {_AGAIN}"
    else:
        return
    raise WorkspaceError(f"{folder}: {why}")


def _has_vectors(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("demonstrations") or facts.get("names"))


def ask(folder: Path, facts: Mapping[str, Any], options: Options, say: Say) -> None:
    """Check, before any work, that its Qdrant server answers, accepts the key and has its vectors."""
    there = recorded(facts)
    if not options.address:
        return
    with closing(Server(options, SHORT_WAIT)) as server:
        server.check(say)
        if there and _has_vectors(facts) and not server.has(there):
            raise WorkspaceError(
                f"{folder}: its vectors are in collection {there}, which the Qdrant server at "
                f"{server.host} has not: recover its snapshot, or {_AGAIN}"
            )


def with_short_wait(options: Options) -> Options:
    """The options for a service, whose callers do not wait for a server as long as a job does."""
    return replace(options, wait=min(options.wait, SHORT_WAIT))


@contextmanager
def new_collection(options: Options, say: Say) -> Iterator[str]:
    """The name of a collection for the vectors of a version that is made inside, on a server that was
    checked; empty without a server. If the block fails, the collection is dropped; else the alias points to
    it."""
    if not options.address:
        yield ""
        return
    with closing(Server(options, SHORT_WAIT)) as server:
        name = qdrant.new_name(server, say)
        try:
            yield name
        except BaseException:
            _drop(server, [name], say)
            raise
        if server.has(name):
            qdrant.point_alias(server, name)


def recorded_collections(workspace: Path) -> set[str]:
    """The collections that a workspace's versions record, even if it is damaged or does not exist."""
    found = set()
    for version in versions.known(workspace):
        try:
            found.add(recorded(read_facts(workspace, version)))
        except ValueError:  # a damaged record
            continue
    return found - {""}


def drop(names: Iterable[str], options: Options, say: Say) -> None:
    """Drop those collections that are under the configuration's address; report that others stay."""
    name = options.address.rpartition("/")[2]
    for other in (n for n in names if not name or not qdrant.is_build_collection(name, n)):
        say(f"collection {other} of a Qdrant server is used no more: delete it there")
    if dropped := [n for n in names if name and qdrant.is_build_collection(name, n)]:
        with closing(Server(options, SHORT_WAIT)) as server:
            _drop(server, dropped, say)


def _drop(server: Server, names: Iterable[str], say: Say) -> None:
    for name in names:
        try:
            qdrant.drop(server, name)
        except OSError as fault:
            say(f"collection {name} is used no more, and stays, for it could not be dropped: {fault}")


class Ledger:
    """The collections that changes of a workspace made, one per line, so that those of removed versions can
    be dropped. Guarded by versions.locked."""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.file = workspace, workspace / "versions" / "collections"

    def add(self, name: str) -> None:
        if name:
            self._write([*self._names(), name])

    def tidy(self, options: Options, say: Say) -> None:
        """Drop the collections that no version uses."""
        if not options.address or not (names := self._names()):
            return
        used = recorded_collections(self.workspace)
        drop([n for n in names if n not in used], options, say)
        self._write([n for n in names if n in used])

    def _names(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []

    def _write(self, names: list[str]) -> None:
        storage.write(self.file, "".join(f"{name}\n" for name in names))
