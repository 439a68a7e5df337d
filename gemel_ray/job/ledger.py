"""What counts of an output folder: numbered entries, of which the last is the whole truth.

    ledger/00000007.json   {"run": NAME, "files": [[NAME, documents], ...], "parts": [NAME, ...], "gone": ...}

Two drivers cannot write the same number: an entry is created, never replaced. So a run that takes over
(by an entry with its name) and one that merges files agree on who was first, on a disk or an object store,
and a part that a run writes after it was taken over does not count, however long its worker had slept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from gemel_ray.storage import Folder

ENTRIES = "ledger"


class TakenOver(RuntimeError):
    """Another run writes to this folder now."""


@dataclass(frozen=True)
class State:
    """`run` writes now. `files` of links with their numbers of documents; `parts` of earlier runs that count;
    `gone`: parts that are in files, and files that have successors: being deleted."""

    number: int = 0
    run: str = ""
    files: tuple[tuple[str, int], ...] = ()
    parts: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def latest(folder: Folder) -> State:
    names = folder.names(ENTRIES)
    if not names:
        return State()
    said = json.loads(folder.read(names[-1]))
    return State(
        number=int(names[-1].rpartition("/")[2].partition(".")[0]),
        run=said["run"],
        files=tuple((name, documents) for name, documents in said["files"]),
        parts=tuple(said["parts"]),
        gone=tuple(said["gone"]),
    )


def take_over(folder: Folder, run: str, parts: Callable[[State], list[str]]) -> State:
    """Make the folder this run's; `parts` says which of the parts that lie there count by a state."""
    while True:
        former = latest(folder)
        new = replace(former, number=former.number + 1, run=run, parts=tuple(parts(former)), gone=())
        if _created(folder, new):
            return new


def commit(folder: Folder, new: State) -> None:
    """Make `new`, made of the latest entry, the next. Raises TakenOver where another run has been first."""
    if not _created(folder, new):
        raise TakenOver(f"another run of gemel-ray link has taken over {folder}")


def _created(folder: Folder, state: State) -> bool:
    said = {name: value for name, value in asdict(state).items() if name != "number"}
    return folder.create(f"{ENTRIES}/{state.number:08}.json", json.dumps(said).encode())
