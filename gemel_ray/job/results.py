"""The output folder of a job: who writes to it, what is in it, and its layout (below)."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.storage import TORN, Folder, Place, folder_at

ATTEMPTS = ".attempts"  # batches that workers have begun (job/worker.py)
WORKERS = ".workers"  # measures and warnings of workers (job/record.py)
MARK = "run"


def prepare(output: Place) -> str:
    """Make the folder this run's, and delete what a killed run was writing; the new run's name. Raises
    ValueError, before anything is touched, where there are links that this release cannot continue."""
    run, folder = uuid.uuid4().hex, folder_at(output)
    refuse_foreign(folder)
    state = take_over(folder, run, lambda former: counting_parts(folder, former))
    folder.write(MARK, run.encode())
    _clear(folder, state)
    for notes in (ATTEMPTS, WORKERS):
        folder.clear(notes)
    return run


def refuse_foreign(folder: Folder) -> None:
    """Raise ValueError where there are links that this release cannot continue."""
    known = {name for name, _ in latest(folder).files}
    for name in folder.names(LINKS):
        if name.endswith(".parquet") and name not in known and not is_ours(name):
            raise Mistake(
                f"{folder} holds links of an earlier release of gemel-ray, or of another program ({name}), "
                "which this one cannot go on with: give another --output, or move that folder elsewhere"
            )


def _clear(folder: Folder, state: State) -> None:
    """Delete what does not count: what killed or replaced runs have left."""
    files = {name for name, _ in state.files}
    counts = {*files, *state.parts, *(index_of(name) for name in files)}
    for name in (*folder.names(LINKS), *folder.names(INDEX)):
        if name not in counts and is_ours(name):
            folder.remove(name)
    for run in folder.folders(PARTS):
        inside = folder.names(run)
        stay = [name for name in inside if name in counts or name.endswith(TORN)]
        for name in set(inside).difference(stay):
            folder.remove(name)
        if not stay:
            folder.clear(run)
    folder.clear(PASSES)
    folder.clear(DONE)
    for under in (LINKS, INDEX, ENTRIES):
        folder.tidy(under)


def files(output: Place) -> list[str]:
    """Names of the files and parts that count, files before parts."""
    folder = folder_at(output)
    return counting(folder, latest(folder))


def tables(output: Place, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The links, file by file. Raises ValueError when the folder has none, or an unreadable file."""
    if not latest(folder_at(output)).number:
        raise Mistake(f"{output} holds no links: gemel-ray link writes them to {folder_at(output)}/{LINKS}")
    for name in files(output):
        yield read(folder_at(output), name, columns)


def number(output: Place) -> int:
    """The number of documents in the whole output."""
    folder = folder_at(output)
    state = latest(folder)
    return sum(_documents(folder, state).values())


def _documents(folder: Folder, state: State) -> dict[str, int]:
    """The number of documents in each file and part."""
    known = dict(state.files)
    names = counting(folder, state)
    return {name: known[name] if name in known else len(part_documents(folder, name)) for name in names}


class Counts(TypedDict):
    """Counts over a whole output: documents, rows by status, errors by kind, rows by fingerprint."""

    documents: int
    rows: int
    statuses: dict[str, int]
    errors: dict[str, int]
    fingerprints: dict[str, int]


def counts(output: Place) -> Counts:
    """Count the whole output."""
    folder = folder_at(output)
    state, statuses, errors, prints = latest(folder), Counter[str](), Counter[str](), Counter[str]()
    numbers = _documents(folder, state)
    for name in numbers:
        table = read(folder, name, ["status", "error", "fingerprint"])
        statuses.update(table["status"].to_pylist())
        errors.update(error_kind(e) for e in table["error"].to_pylist() if e)
        prints.update(table["fingerprint"].to_pylist())
    return {
        "documents": sum(numbers.values()),
        "rows": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "errors": dict(errors.most_common()),
        "fingerprints": dict(prints.most_common()),
    }


# The kind of an error: its text without the parts that differ from row to row.


_VARYING = re.compile(
    r"""
      \b[a-z][a-z0-9+.-]*://\S+          # an address
    | '[^']*' | "[^"]*"                  # a quotation
    | (?<!\w)[\w.~-]*/[^\s:,]+           # a path
    | \b[\w-]+\.[A-Za-z][A-Za-z0-9]{1,4}\b(?::\d+)?  # a file
    | \d[\d,.]*\d|\d                     # a number
    """,
    re.VERBOSE,
)


def error_kind(error: str) -> str:
    """The error with an ellipsis for each address, path, file, quotation and number in it, so that rows with
    the same kind of error are counted together."""
    return re.sub(r"\.\.\.(?:[\s,-]*\.\.\.)+", "...", _VARYING.sub("...", error))


# The layout of a job's output folder: what is where, which of it counts, and how it is read.
#
# links/*.parquet   one row a mention, about 100,000 documents a file
# parts/RUN/        batches as workers write them, until there are enough for a file (job/merging.py)
# ledger/           which of these count (below)
# index/            what is done, a record for each document of a file of links (job/index.py)


LINKS, PARTS, INDEX = "links", "parts", "index"
PASSES, DONE = "passes", "done"  # folders of the run that writes (job/index.py)
SOURCE = "source"  # column: the input's file and row, with a mark (job/index.py)
DOCUMENTS = b"gemel_ray.documents"  # in a part's metadata: [[source, rows, has an error], ...] in its order
_MADE = re.compile(r"\d{8}-\d{3}-[0-9a-f]{8}\.(parquet|npy)")
_log = logging.getLogger(__name__)


def is_ours(name: str) -> bool:
    """Whether the name is one that a job gives to a file of links or of the index."""
    return _MADE.fullmatch(name.rpartition("/")[2]) is not None


def index_of(name: str) -> str:
    """Where the records of a file's documents are."""
    return f"{INDEX}/{name.rpartition('/')[2].removesuffix('.parquet')}.npy"


def counting(folder: Folder, state: State) -> list[str]:
    """The names of all that counts, files before parts."""
    there = set(folder.names(LINKS))
    return [*(name for name, _ in state.files if name in there), *counting_parts(folder, state)]


def counting_parts(folder: Folder, state: State) -> list[str]:
    """Parts that are not merged into a file yet: of the run that writes, and of earlier runs."""
    gone = set(state.gone)
    current = folder.names(f"{PARTS}/{state.run}") if state.run else []
    there = {name for run in {p.rpartition("/")[0] for p in state.parts} for name in folder.names(run)}
    found = (*current, *(part for part in state.parts if part in there))
    return [name for name in found if name.endswith(".parquet") and name not in gone]


def read(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with folder.open(name) as file:
            return pq.read_table(file, columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as fault:
        raise Mistake(f"cannot read {folder}/{name}: {fault}") from fault


def documents(part: pa.Schema) -> list[tuple[str, int, bool]]:
    """Each document of a part: source, number of rows, and whether one is an error."""
    return [(source, rows, bad) for source, rows, bad in json.loads(part.metadata[DOCUMENTS])]


def part_documents(folder: Folder, name: str) -> list[tuple[str, int, bool]]:
    with folder.open(name) as file:
        return documents(pq.read_schema(file))


def is_torn(folder: Folder, name: str) -> bool:
    """Whether the file is not Parquet or is cut off. If so, it is set aside."""
    if is_parquet(folder, name):
        return False
    set_aside(folder, name)
    return True


def is_parquet(folder: Folder, name: str) -> bool:
    try:
        with folder.open(name) as file:
            pq.read_metadata(file)
    except pa.ArrowInvalid:
        return False
    return True


def set_aside(folder: Folder, name: str) -> None:
    torn = folder.set_aside(name).rpartition("/")[2]
    _log.warning(
        "%s/%s is torn, as by a power cut: it is %s now, and its rows are done again", folder, name, torn
    )


# The ledger says what counts in an output folder: numbered entries, of which only the last is valid.
#
#     ledger/00000007.json   {"run": NAME, "files": [[NAME, documents], ...], "parts": [NAME, ...], ...}
#
# Two drivers cannot write the same number: an entry is created, never replaced. So a run that takes over
# (by an entry with its name) and one that merges files agree on who was first, on a disk or an object store.
# A part that a run writes after another has taken over does not count, however late its worker writes it.


ENTRIES = "ledger"


class TakenOver(RuntimeError):
    """Another run writes to this folder now."""


@dataclass(frozen=True)
class State:
    """An entry: `run` writes now. `files` of links with their numbers of documents; `parts` of earlier runs
    that count; `gone`: merged parts and replaced files, which are being deleted."""

    number: int = 0
    run: str = ""
    files: tuple[tuple[str, int], ...] = ()
    parts: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def latest(folder: Folder) -> State:
    names = folder.names(ENTRIES)
    if not names:
        return State()
    entry = json.loads(folder.read(names[-1]))
    return State(
        number=int(names[-1].rpartition("/")[2].partition(".")[0]),
        run=entry["run"],
        files=tuple((name, documents) for name, documents in entry["files"]),
        parts=tuple(entry["parts"]),
        gone=tuple(entry["gone"]),
    )


def take_over(folder: Folder, run: str, parts: Callable[[State], list[str]]) -> State:
    """Make the folder this run's; `parts` returns the parts that count by a state."""
    while True:
        former = latest(folder)
        new = replace(former, number=former.number + 1, run=run, parts=tuple(parts(former)), gone=())
        if _created(folder, new):
            return new


def commit(folder: Folder, new: State) -> None:
    """Write `new`, made from the latest entry, as the next. Raises TakenOver where another run was first."""
    if not _created(folder, new):
        raise TakenOver(f"another run of gemel-ray link has taken over {folder}")


def _created(folder: Folder, state: State) -> bool:
    entry = {name: value for name, value in asdict(state).items() if name != "number"}
    return folder.create(f"{ENTRIES}/{state.number:08}.json", json.dumps(entry).encode())
