"""The output folder of a job: links/*.parquet, one row a mention, and manifest.json.

A batch is one file, named after the documents in it, written in one step: what stands there is
whole, and a batch that is computed twice is there once. Each file's metadata says which rows of the input
its documents are: written with the links in one stroke, and all that a resumed run has to read.

One run at a time writes. A worker of an earlier one that is still alive, somewhere, finds that another run
has taken the folder over, and stops (`TakenOver`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.job import attempts
from gemel_ray.job.reasons import kind
from gemel_ray.object_folder import Place, folder_at
from gemel_ray.readers import REST
from gemel_ray.storage import Folder

_log = logging.getLogger(__name__)
Keys = npt.NDArray[np.uint64]
SOURCE = "source"  # column of the input's file and row, as it stands in a file's metadata
_DOCUMENTS = b"gemel_ray.documents"  # there: [[source, rows], ...] in the file's order
LINKS, WORKERS = "links", ".workers"  # folders of the batches, and of what workers tell (job/record.py)
_MARK = ".run"
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before storage that failed is written to again


class TakenOver(RuntimeError):
    """Another run writes to this folder now."""


def prepare(output: Place) -> str:
    """Make the folder this run's, and clear away what workers of a former one noted; the run's name."""
    run, at = uuid.uuid4().hex, folder_at(output)
    at.write(_MARK, run.encode())
    at.tidy(LINKS)
    for notes in (attempts.FOLDER, WORKERS):
        at.clear(notes)
    return run


def path(sources: Collection[str]) -> str:
    """The file of a batch of these documents, in this order."""
    digest = hashlib.blake2b(json.dumps(list(sources)).encode(), digest_size=12).hexdigest()
    return f"{LINKS}/{digest}.parquet"


def written(output: Place, sources: Collection[str]) -> pa.Table | None:
    """What was written of a batch already, its worker having died then."""
    try:
        return with_sources(output, path(sources))
    except FileNotFoundError:
        return None


def write(rows: pa.Table, output: Place, run: str | None = None) -> str:
    """Write one batch of whole documents; the file's name. Rows without a `source` are known by their
    document's id. Storage that fails is tried again for half a minute. Raises OSError, and TakenOver."""
    sources = rows[SOURCE if SOURCE in rows.column_names else "document_id"].to_pylist()
    documents = [[source, len(list(same))] for source, same in groupby(sources)]
    name, at = path([str(source) for source, _ in documents]), folder_at(output)
    rows = rows.drop_columns([SOURCE]) if SOURCE in rows.column_names else rows
    data = _as_parquet(rows.replace_schema_metadata({_DOCUMENTS: json.dumps(documents)}))
    for pause in (*_PAUSES, None):
        try:
            if run is not None and at.read(_MARK).decode() != run:
                raise TakenOver(f"another run of gemel-ray link has taken over {at}")
            at.write(name, data)
        except OSError as fault:
            if pause is None:
                raise OSError(f"cannot write to {output}: {fault}. The same command goes on.") from fault
            time.sleep(pause)
        else:
            return name
    raise AssertionError("the last attempt returns or raises")


def _as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def files(output: Place) -> list[str]:
    """Names of the written batches, in no order that means anything."""
    return [name for name in folder_at(output).names(LINKS) if name.endswith(".parquet")]


def tables(output: Place, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The written batches. Raises ValueError when the folder is no job's, or a batch cannot be read."""
    at = folder_at(output)
    if not (written := files(at)) and _MARK not in at.names():
        raise ValueError(f"{at} holds no links: gemel-ray link writes them to {at}/{LINKS}")
    for name in written:
        yield _read(at, name, columns)


def _read(at: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with at.open(name) as file:
            return pq.read_table(file, columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as fault:
        raise ValueError(f"cannot read {at}/{name}: {fault}") from fault


def with_sources(output: Place, name: str) -> pa.Table:
    """A batch's rows as they were given to `write`."""
    table = _read(folder_at(output), name)
    sources = [source for source, rows in _listed(table.schema.metadata, name) for _ in range(rows)]
    return table.append_column(SOURCE, [pa.array(sources, pa.string())])


def documents(output: Place, name: str) -> list[tuple[str, int]]:
    """Source and number of rows of each document in the file. Raises ValueError for a foreign file."""
    at = folder_at(output)
    try:
        with at.open(name) as file:
            said = pq.read_metadata(file).metadata
    except (pa.ArrowInvalid, OSError) as fault:
        raise ValueError(f"cannot read {at}/{name}: {fault}") from fault
    return _listed(said, f"{at}/{name}")


def _listed(said: Mapping[bytes, bytes] | None, file: str) -> list[tuple[str, int]]:
    if not said or _DOCUMENTS not in said:
        raise ValueError(f"{file} was not written by this gemel-ray's link: move it elsewhere")
    return [(source, rows) for source, rows in json.loads(said[_DOCUMENTS])]


def finished(output: Place) -> Keys:
    """Sorted keys of the documents that are there, 8 bytes each. A document that two runs wrote, as when the
    first had only been cut off, is taken out of one of its files; and the row that says what of an input
    could not be had from its storage is taken out, to be asked for again. A torn file is set aside."""
    found, at = dict[str, Keys](), folder_at(output)
    for file in files(at):
        if _is_torn(at, file):
            continue
        sources = [source for source, _ in documents(at, file)]
        if lost := [source for source in sources if source.endswith(f":{REST}")]:
            _drop(at, file, lost)
            sources = [source for source in sources if source not in lost]
        if sources:
            found[file] = keys(sources)
    if not found:
        return np.empty(0, np.uint64)
    unique, times = np.unique(np.concatenate(list(found.values())), return_counts=True)
    twice, seen = set(unique[times > 1].tolist()), set[int]()
    for file, own in found.items() if twice else ():
        again = seen & set(own.tolist())
        seen |= twice & set(own.tolist())
        if again:
            _drop(at, file, [s for s, _ in documents(at, file) if int(keys([s])[0]) in again])
    return unique


def _is_torn(at: Folder, name: str) -> bool:
    """Whether the file is no Parquet, or ends before its end: then it is set aside, and said so."""
    try:
        with at.open(name) as file:
            pq.read_metadata(file)
    except pa.ArrowInvalid:
        aside = at.set_aside(name).rpartition("/")[2]
        said = "%s/%s is torn, as by a power cut: it is %s now, and its rows are done again"
        _log.warning(said, at, name, aside)
        return True
    return False


def keys(sources: Sequence[str]) -> Keys:
    """Hashes of sources, in their order."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sources)
    return np.frombuffer(digests, np.uint64)


def forget_failed(output: Place, reason: str = "") -> int:
    """Take out the documents with an error row whose error holds `reason`, in any case of its letters, so
    that the next run does them anew; how many they were."""
    count, at = 0, folder_at(output)
    for file in files(at):
        rows = _read(at, file, ["status", "error"]).to_pylist()
        failed, first = list[str](), 0
        for source, number in documents(at, file):
            own = rows[first : first + number]
            first += number
            if any(r["status"] == "error" and reason.lower() in r["error"].lower() for r in own):
                failed.append(source)
        if failed:
            _drop(at, file, failed)
        count += len(failed)
    return count


def _drop(at: Folder, file: str, sources: Collection[str]) -> None:
    """The file without these documents."""
    gone, listed, table = set(sources), documents(at, file), _read(at, file)
    kept = [(source, rows) for source, rows in listed if source not in gone]
    mask = np.repeat([source not in gone for source, _ in listed], [rows for _, rows in listed])
    if not kept:
        at.remove(file)
        return
    left = table.filter(pa.array(mask)).replace_schema_metadata({_DOCUMENTS: json.dumps(kept)})
    at.write(file, _as_parquet(left))


def counts(output: Place) -> dict[str, Any]:
    """Of the whole output: documents, rows by status, errors by kind, rows by fingerprint."""
    statuses, errors, prints = Counter[str](), Counter[str](), Counter[str]()
    for table in tables(output, ["status", "error", "fingerprint"]):
        statuses.update(table["status"].to_pylist())
        errors.update(kind(e) for e in table["error"].to_pylist() if e)
        prints.update(table["fingerprint"].to_pylist())
    return {
        "documents": sum(len(documents(output, file)) for file in files(output)),
        "rows": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "errors": dict(errors.most_common()),
        "fingerprints": dict(prints.most_common()),
    }
