"""The layout of a job's output folder: what is where, which of it counts, and how it is read.

links/*.parquet   one row a mention, about 100,000 documents a file
parts/RUN/        batches as workers write them, until there are enough for a file (job/merging.py)
ledger/           which of these count (below)
index/            what is done, a record for each document of a file of links (job/index.py)
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.storage import Folder

LINKS, PARTS, INDEX = "links", "parts", "index"
PASSES, DONE = "passes", "done"  # folders of the run that writes (job/index.py)
SOURCE = "source"  # column: the input's file and row, with a mark (job/index.py)
DOCUMENTS = b"gemel_ray.documents"  # in a part's metadata: [[source, rows, has an error], ...] in its order
_MADE = re.compile(r"\d{8}-\d{3}-[0-9a-f]{8}\.(parquet|npy)")
_log = logging.getLogger(__name__)


def part_of(run: str | None, sources: Collection[str]) -> str:
    """The name of the part for a batch of these documents, in this order."""
    digest = hashlib.blake2b(json.dumps(list(sources)).encode(), digest_size=12).hexdigest()
    return f"{PARTS}/{run}/{digest}.parquet"


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


def with_sources(folder: Folder, part: str) -> pa.Table:
    """A part's rows with their sources, as the worker had them."""
    table = read(folder, part)
    sources = [source for source, rows, _ in documents(table.schema) for _ in range(rows)]
    return table.append_column(SOURCE, [pa.array(sources, pa.string())])


def documents(part: pa.Schema) -> list[tuple[str, int, bool]]:
    """Each document of a part: source, number of rows, and whether one is an error."""
    return [(source, rows, bad) for source, rows, bad in json.loads(part.metadata[DOCUMENTS])]


def part_documents(folder: Folder, name: str) -> list[tuple[str, int, bool]]:
    with folder.open(name) as file:
        return documents(pq.read_schema(file))


def is_torn(folder: Folder, name: str) -> bool:
    """Whether the file is not Parquet or is cut off. If so, it is set aside."""
    try:
        with folder.open(name) as file:
            pq.read_metadata(file)
    except pa.ArrowInvalid:
        set_aside(folder, name)
        return True
    return False


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
