"""The output folder of a job: who writes to it, and what is in it (its layout: job/layout.py).

A part is named after the documents in it, so a batch that a run computes twice is there once. Its metadata
lists them; both are written in one file, at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.job import layout
from gemel_ray.job.index import finished
from gemel_ray.job.layout import DOCUMENTS, LINKS, PARTS, SOURCE, State, TakenOver
from gemel_ray.storage import TORN, Folder, Place, folder_at

__all__ = [
    "SOURCE",
    "TakenOver",
    "counts",
    "files",
    "finished",
    "keys",
    "prepare",
    "refuse_foreign",
    "tables",
    "write",
]
Keys = npt.NDArray[np.uint64]
ATTEMPTS = ".attempts"  # batches that workers have begun (job/worker.py)
WORKERS = ".workers"  # measures and warnings of workers (job/record.py)
MARK = "run"
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before storage that failed is written to again


def prepare(output: Place) -> str:
    """Make the folder this run's, and delete what a killed run was writing; the new run's name. Raises
    ValueError, before anything is touched, where there are links that this release cannot continue."""
    run, folder = uuid.uuid4().hex, folder_at(output)
    refuse_foreign(folder)
    state = layout.take_over(folder, run, lambda former: layout.counting_parts(folder, former))
    folder.write(MARK, run.encode())
    _clear(folder, state)
    for notes in (ATTEMPTS, WORKERS):
        folder.clear(notes)
    return run


def refuse_foreign(folder: Folder) -> None:
    """Raise ValueError where there are links that this release cannot continue."""
    known = {name for name, _ in layout.latest(folder).files}
    for name in folder.names(LINKS):
        if name.endswith(".parquet") and name not in known and not layout.is_ours(name):
            raise Mistake(
                f"{folder} holds links of an earlier release of gemel-ray, or of another program ({name}), "
                "which this one cannot go on with: give another --output, or move that folder elsewhere"
            )


def _clear(folder: Folder, state: State) -> None:
    """Delete what does not count: what killed or replaced runs have left."""
    files = {name for name, _ in state.files}
    counts = {*files, *state.parts, *(layout.index_of(name) for name in files)}
    for name in (*folder.names(LINKS), *folder.names(layout.INDEX)):
        if name not in counts and layout.is_ours(name):
            folder.remove(name)
    for run in folder.folders(PARTS):
        inside = folder.names(run)
        stay = [name for name in inside if name in counts or name.endswith(TORN)]
        for name in set(inside).difference(stay):
            folder.remove(name)
        if not stay:
            folder.clear(run)
    folder.clear(layout.PASSES)
    folder.clear(layout.DONE)
    for under in (LINKS, layout.INDEX, layout.ENTRIES):
        folder.tidy(under)


def written(output: Place, run: str | None, sources: Collection[str]) -> pa.Table | None:
    """The rows of a batch that this run has already written, if its worker died after that."""
    folder = folder_at(output)
    try:
        return layout.with_sources(folder, layout.part_of(run or layout.latest(folder).run, sources))
    except FileNotFoundError:
        return None


def write(rows: pa.Table, output: Place, run: str | None = None) -> str:
    """Write one batch, whole documents, for the run that writes now; the part's name. Without a `source`
    column the document's id serves as one. Failing storage is retried for half a minute. Raises OSError,
    and TakenOver."""
    folder = folder_at(output)
    run = run or layout.latest(folder).run
    sources = rows[SOURCE if SOURCE in rows.column_names else "document_id"].to_pylist()
    bad = _failed(rows)
    documents = [
        (str(source), len(numbers), any(bad[i] for i in numbers))
        for source, numbers in ((s, list(g)) for s, g in groupby(range(len(rows)), key=sources.__getitem__))
    ]
    rows = rows.drop_columns([SOURCE]) if SOURCE in rows.column_names else rows
    data = as_parquet(rows.replace_schema_metadata({DOCUMENTS: json.dumps(documents)}))
    name = layout.part_of(run, [source for source, _, _ in documents])
    for pause in (*_PAUSES, None):
        try:
            if folder.read(MARK).decode() != run:
                raise TakenOver(f"another run of gemel-ray link has taken over {folder}")
            folder.write(name, data)
        except OSError as fault:
            if pause is None:
                raise OSError(f"cannot write to {output}: {fault}. The same command continues.") from fault
            time.sleep(pause)
        else:
            return name
    raise AssertionError("the last attempt returns or raises")


def _failed(rows: pa.Table) -> list[bool]:
    if "status" not in rows.column_names:
        return [False] * len(rows)
    found: list[bool] = pc.fill_null(pc.equal(rows["status"], "error"), False).to_pylist()
    return found


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def files(output: Place) -> list[str]:
    """Names of the files and parts that count, files before parts."""
    folder = folder_at(output)
    return layout.counting(folder, layout.latest(folder))


def tables(output: Place, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The links, file by file. Raises ValueError when the folder has none, or an unreadable file."""
    if not layout.latest(folder_at(output)).number:
        raise Mistake(f"{output} holds no links: gemel-ray link writes them to {folder_at(output)}/{LINKS}")
    for name in files(output):
        yield layout.read(folder_at(output), name, columns)


def keys(sources: Sequence[str]) -> Keys:
    """Hashes of sources, in their order."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sources)
    return np.frombuffer(digests, np.uint64)


def number(output: Place) -> int:
    """The number of documents in the whole output."""
    folder = folder_at(output)
    state = layout.latest(folder)
    return sum(_documents(folder, state).values())


def _documents(folder: Folder, state: State) -> dict[str, int]:
    """The number of documents in each file and part."""
    known = dict(state.files)
    names = layout.counting(folder, state)
    return {
        name: known[name] if name in known else len(layout.part_documents(folder, name)) for name in names
    }


def counts(output: Place) -> dict[str, Any]:
    """Counts over the whole output: documents, rows by status, errors by kind, rows by fingerprint."""
    folder = folder_at(output)
    state, statuses, errors, prints = layout.latest(folder), Counter[str](), Counter[str](), Counter[str]()
    numbers = _documents(folder, state)
    for name in numbers:
        table = layout.read(folder, name, ["status", "error", "fingerprint"])
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
