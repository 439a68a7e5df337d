"""The output folder of a job: links/*.parquet, one row a mention, and manifest.json.

A batch is one file, named after the documents in it, written aside and then renamed: what stands there is
whole, and a batch that is computed twice is there once. Each file's metadata says which rows of the input
its documents are: written with the links in one stroke, and all that a resumed run has to read.

One run at a time writes. A worker of an earlier one that is still alive, somewhere, finds that another run
has taken the folder over, and stops (`TakenOver`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.job.reasons import kind
from gemel_ray.readers import REST
from gemel_ray.storage import make_folder, replacing, set_aside
from gemel_ray.storage import write as write_file

_log = logging.getLogger(__name__)
Keys = npt.NDArray[np.uint64]
SOURCE = "source"  # column of the input's file and row, as it stands in a file's metadata
_DOCUMENTS = b"gemel_ray.documents"  # there: [[source, rows], ...] in the file's order
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before storage that failed is written to again


class TakenOver(RuntimeError):
    """Another run writes to this folder now."""


def folder(output: Path) -> Path:
    """Where the links lie."""
    return output / "links"


def attempts(output: Path) -> Path:
    """Where workers note what they begin (job/attempts.py)."""
    return output / ".attempts"


def workers(output: Path) -> Path:
    """Where they tell what they measure (job/record.py): a file each."""
    return output / ".workers"


def prepare(output: Path) -> str:
    """Make the folder this run's, and clear away what a killed one was writing; the run's name."""
    run = uuid.uuid4().hex
    make_folder(folder(output))
    write_file(_mark(output), run)
    for aside in folder(output).glob(".*"):
        aside.unlink(missing_ok=True)
    for told in (attempts(output), workers(output)):
        rmtree(told, ignore_errors=True)
        told.mkdir()
    return run


def path(output: Path, sources: Collection[str]) -> Path:
    """The file of a batch of these documents, in this order."""
    digest = hashlib.blake2b(json.dumps(list(sources)).encode(), digest_size=12).hexdigest()
    return folder(output) / f"{digest}.parquet"


def write(rows: pa.Table, output: Path, run: str | None = None) -> Path:
    """Write one batch; its documents must be whole in it. Rows without a `source` are known by their
    document's id. Storage that fails is tried again for half a minute. Raises OSError, and TakenOver."""
    sources = rows[SOURCE if SOURCE in rows.column_names else "document_id"].to_pylist()
    documents = [[source, len(list(same))] for source, same in groupby(sources)]
    target = path(output, [str(source) for source, _ in documents])
    rows = rows.drop_columns([SOURCE]) if SOURCE in rows.column_names else rows
    table = rows.replace_schema_metadata({_DOCUMENTS: json.dumps(documents)})
    for pause in (*_PAUSES, None):
        try:
            return _written(table, target, _mark(output), run)
        except OSError as fault:
            if pause is None:
                raise OSError(f"cannot write to {output}: {fault}. The same command goes on.") from fault
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _written(table: pa.Table, target: Path, mark: Path, run: str | None) -> Path:
    with replacing(target) as aside:
        pq.write_table(table, aside, compression="zstd")
        if run is not None and mark.read_text() != run:
            raise TakenOver(f"another run of gemel-ray link has taken over {mark.parent}")
    return target


def files(output: Path) -> list[Path]:
    """The written batches, in no order that means anything."""
    return sorted(folder(output).glob("*.parquet"))


def tables(output: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The written batches. Raises ValueError when the folder holds none, or no readable one."""
    if not folder(output).is_dir():
        raise ValueError(f"{output} holds no links: gemel-ray link writes them to {folder(output)}")
    for file in files(output):
        yield _read(file, columns)


def _read(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as fault:
        raise ValueError(f"cannot read {file}: {fault}") from fault


def with_sources(file: Path) -> pa.Table:
    """A batch's rows as they were given to `write`."""
    sources = [source for source, rows in documents(file) for _ in range(rows)]
    return _read(file).append_column(SOURCE, [pa.array(sources, pa.string())])


def documents(file: Path) -> list[tuple[str, int]]:
    """Source and number of rows of each document in the file. Raises ValueError for a foreign file."""
    try:
        said = pq.read_metadata(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as fault:
        raise ValueError(f"cannot read {file}: {fault}") from fault
    if _DOCUMENTS not in said:
        raise ValueError(f"{file} was not written by this gemel-ray's link: move it elsewhere")
    return [(source, rows) for source, rows in json.loads(said[_DOCUMENTS])]


def finished(output: Path) -> Keys:
    """Sorted keys of the documents that are there, 8 bytes each. A document that two runs wrote, as when the
    first had only been cut off, is taken out of one of its files; and the row that says what of an input
    could not be had from its storage is taken out, to be asked for again. A torn file is set aside."""
    found = dict[Path, Keys]()
    for file in files(output):
        if _is_torn(file):
            aside = set_aside(file).name
            _log.warning(
                "%s is torn, as by a power cut: it is %s now, and its rows are done again", file, aside
            )
            continue
        sources = [source for source, _ in documents(file)]
        if lost := [source for source in sources if source.endswith(f":{REST}")]:
            _drop(file, lost)
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
            _drop(file, [s for s, _ in documents(file) if int(keys([s])[0]) in again])
    return unique


def _is_torn(file: Path) -> bool:
    """Whether the file is no Parquet, or ends before its end: what a power cut leaves of unsynced files."""
    try:
        pq.read_metadata(file)
    except pa.ArrowInvalid:
        return True
    return False


def keys(sources: Sequence[str]) -> Keys:
    """Hashes of sources, in their order."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sources)
    return np.frombuffer(digests, np.uint64)


def forget_failed(output: Path, reason: str = "") -> int:
    """Take out the documents with an error row whose error holds `reason`, in any case of its letters, so
    that the next run does them anew; how many they were."""
    count = 0
    for file in files(output):
        rows = _read(file, ["status", "error"]).to_pylist()
        failed, at = list[str](), 0
        for source, number in documents(file):
            own = rows[at : at + number]
            at += number
            if any(r["status"] == "error" and reason.lower() in r["error"].lower() for r in own):
                failed.append(source)
        if failed:
            _drop(file, failed)
        count += len(failed)
    return count


def _drop(file: Path, sources: Collection[str]) -> None:
    """The file without these documents."""
    gone, listed, table = set(sources), documents(file), _read(file)
    kept = [(source, rows) for source, rows in listed if source not in gone]
    mask = np.repeat([source not in gone for source, _ in listed], [rows for _, rows in listed])
    if not kept:
        file.unlink()
        return
    left = table.filter(pa.array(mask)).replace_schema_metadata({_DOCUMENTS: json.dumps(kept)})
    with replacing(file) as aside:
        pq.write_table(left, aside, compression="zstd")


def counts(output: Path) -> dict[str, Any]:
    """Of the whole output: documents, rows by status, errors by kind, rows by fingerprint."""
    statuses, errors, prints = Counter[str](), Counter[str](), Counter[str]()
    for table in tables(output, ["status", "error", "fingerprint"]):
        statuses.update(table["status"].to_pylist())
        errors.update(kind(e) for e in table["error"].to_pylist() if e)
        prints.update(table["fingerprint"].to_pylist())
    return {
        "documents": sum(len(documents(file)) for file in files(output)),
        "rows": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "errors": dict(errors.most_common()),
        "fingerprints": dict(prints.most_common()),
    }


def _mark(output: Path) -> Path:
    return output / ".run"
