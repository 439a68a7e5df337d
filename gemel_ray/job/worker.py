"""A worker: runs a segment in a process that may die. Batches in, rows out.

Besides error rows, three things can happen to a worker:
- It runs out of memory at a batch: the batch is halved, down to one document, which then gets an error.
- It dies (a crash in a library, the system's out-of-memory killer), or its engine dies and it exits. Ray
  restarts it and gives it its batches again. It tries them in parts, one at a time; a document that kills it
  twice alone gets an error, and the others go on. Where three did, and no worker of the run has survived
  any document, the documents are not to blame: that ends the job.
- It fails: a fault of a stage, or of what all stages need. That is raised, and ends the job.

A part, the file of a batch's rows, is named after the documents in it, so a batch that a run computes twice
is there once. Its metadata lists them; both are written in one file, at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import resource
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.errors import Stopped
from gemel_ray.graph import Graph
from gemel_ray.job.record import BatchCounts, ErrorExample, WorkerMeasures
from gemel_ray.job.results import (
    ATTEMPTS,
    DOCUMENTS,
    MARK,
    PARTS,
    SOURCE,
    WORKERS,
    TakenOver,
    documents,
    error_kind,
)
from gemel_ray.job.selection import without_mark
from gemel_ray.stage import ERROR, Measures, Segment
from gemel_ray.storage import Folder

_PARTS = 8  # into which a batch is cut after its worker died
_DEATHS = 2  # workers that died with a document alone, before it is set aside
_HOPELESS = 3  # documents set aside while none has succeeded
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


@dataclass
class Worker:
    """One worker of a segment, for a run. `output`: where the last segment's worker writes."""

    segment: Segment
    attempts: Attempts
    run: str
    output: Folder | None = None
    under_way: int = 0
    survived: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch's rows; of the last segment, those that are written. Many may be under way at once."""
        sources = _sources(batch)
        if self.output and (rows := await asyncio.to_thread(written_part, self.output, self.run, sources)):
            return rows  # its worker died after it wrote them
        deaths = await asyncio.to_thread(self.attempts.begin, sources)
        if deaths == 0:
            async with self._together():
                rows = await self._computed(batch)
            self._note_success()
        else:
            async with self._alone():
                rows = pa.concat_tables([await self._isolated(part) for part in _parts(batch)])
        if self.output:
            await asyncio.to_thread(write_part, rows, self.output, self.run)
        await asyncio.to_thread(self.attempts.end, sources)
        return rows

    async def _isolated(self, batch: pa.Table) -> pa.Table:
        """Compute the batch while nothing else is under way: if the worker dies, this batch is the cause."""
        sources = _sources(batch)
        deaths = self.attempts.begin(sources, alone=True)
        if deaths and len(sources) > 1:
            rows = pa.concat_tables([await self._isolated(part) for part in _parts(batch)])
        elif deaths >= _DEATHS:
            why = self.attempts.reason(sources)
            died = f"a worker died {deaths} times with this document alone"
            if (number := self.attempts.set_aside()) >= _HOPELESS:
                raise Stopped(
                    f"{number} documents killed their workers, and none went well{why and ': '}{why}"
                )
            rows = await self._set_aside(batch, f"{died}: {why}" if why else died)
        else:
            rows = await self._computed(batch)
            self._note_success()
        self.attempts.end(sources, alone=True)
        return rows

    async def _computed(self, batch: pa.Table) -> pa.Table:
        """Compute the batch, in halves where memory does not suffice."""
        try:
            return await self.segment.run(batch)
        except Exception as fault:
            self._exit_if_broken(_sources(batch))
            if not _is_out_of_memory(fault):
                raise
            shown = f"out of memory with this document alone: {str(fault).splitlines()[0]:.160}"
        halves = _parts(batch, 2)
        if len(halves) == 1:
            return await self._set_aside(batch, shown)
        return pa.concat_tables([await self._computed(half) for half in halves])

    async def _set_aside(self, batch: pa.Table, reason: str) -> pa.Table:
        """Give the documents an error: they skip all stages."""
        if ERROR.name in batch.column_names:
            batch = batch.drop_columns([ERROR.name])
        errors = pa.array([reason] * len(batch), ERROR.type)
        return await self.segment.run(batch.append_column(ERROR, errors))

    def _note_success(self) -> None:
        if not self.survived:
            self.attempts.save_survival()
            self.survived = True

    def _exit_if_broken(self, sources: Sequence[str]) -> None:
        """End the process where a stage is broken for good, as when its engine died: a new process works."""
        try:
            self.segment.check()
        except Exception as fault:
            self.attempts.save_reason(sources, f"{type(fault).__name__}: {fault}"[:300])
            logging.getLogger(__name__).exception("this worker ends: Ray starts another")
            logging.shutdown()
            os._exit(1)

    @asynccontextmanager
    async def _together(self) -> AsyncIterator[None]:
        async with self.alone, self.changed:
            self.under_way += 1
        try:
            yield
        finally:
            async with self.changed:
                self.under_way -= 1
                self.changed.notify_all()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self.alone:
            async with self.changed:
                await self.changed.wait_for(lambda: self.under_way == 0)
            yield


def batch_counts(rows: pa.Table, run: str) -> BatchCounts:
    """The counts of a batch's rows: its part, documents, statuses, and errors by kind with an example."""
    sources = _sources(rows)
    errors: dict[str, tuple[int, ErrorExample]] = {}
    failed = rows.select(["document_id", "source", "mention", "error"]).filter(pc.is_valid(rows["error"]))
    for row in failed.to_pylist():
        row["source"] = without_mark(row["source"])
        number, first = errors.get(kind := error_kind(row["error"]), (0, row))
        errors[kind] = number + 1, first
    return {
        "part": part_of(run, sources),
        "documents": len(sources),
        "statuses": Counter(rows["status"].to_pylist()),
        "errors": errors,
    }


def write_measures(
    output: Folder, name: str, node: str, measures: Measures, gpus: Collection[str] = ()
) -> None:
    """In a worker: write the Ray node and its GPUs that it runs on, its measures since it started, and its
    peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
    entry: WorkerMeasures = {
        "node": node,
        "gpus": list(gpus),
        "peak_mib": round(peak),
        "measures": measures,
    }
    output.write(f"{WORKERS}/{name}.json", json.dumps(entry).encode())


def with_source_column(graph: Graph) -> Graph:
    """The graph with the column `source` in its results."""
    return replace(graph, result=graph.result.append(graph.source.field(SOURCE)))


def _sources(batch: pa.Table) -> list[str]:
    """The documents' sources, in order; after Retrieve a document is several rows."""
    return list(dict.fromkeys(batch[SOURCE].to_pylist()))


def _parts(batch: pa.Table, number: int = _PARTS) -> list[pa.Table]:
    """Cut the batch into at most `number` parts of whole documents."""
    listed = batch[SOURCE].to_pylist()
    first = [i for i, source in enumerate(listed) if i == 0 or source != listed[i - 1]]
    size = -(-len(first) // number)
    cuts: Sequence[int] = [*first[::size], len(batch)]
    return [batch.slice(a, b - a) for a, b in pairwise(cuts)]


def _is_out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out. Torch has a class for the GPU's memory, only a message for the machine's."""
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault).lower() for words in _OUT_OF_MEMORY)


# The part of a batch: its rows as a file.


_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before storage that failed is written to again


def written_part(folder: Folder, run: str, sources: Collection[str]) -> pa.Table | None:
    """The rows of a batch that this run has already written, if its worker died after that."""
    try:
        table = pq.read_table(io.BytesIO(folder.read(part_of(run, sources))))
    except FileNotFoundError:
        return None
    column = [source for source, rows, _ in documents(table.schema) for _ in range(rows)]
    return table.append_column(SOURCE, [pa.array(column, pa.string())])


def write_part(rows: pa.Table, folder: Folder, run: str) -> str:
    """Write one batch, whole documents, for the run; the part's name. Failing storage is retried for half a
    minute. Raises OSError, and TakenOver if another run has the folder now."""
    numbers = Counter(rows[SOURCE].to_pylist())  # the rows of a document are together
    failed = set(rows[SOURCE].filter(pc.equal(rows["status"], "error")).to_pylist())
    listed = [(source, number, source in failed) for source, number in numbers.items()]
    links = rows.drop_columns([SOURCE]).replace_schema_metadata({DOCUMENTS: json.dumps(listed)})
    data, name = as_parquet(links), part_of(run, numbers)
    for pause in (*_PAUSES, None):
        try:
            if folder.read(MARK).decode() != run:
                raise TakenOver(f"another run of gemel-ray link has taken over {folder}")
            folder.write(name, data)
        except OSError as fault:
            if pause is None:
                raise OSError(f"cannot write to {folder}: {fault}. The same command continues.") from fault
            time.sleep(pause)
        else:
            return name
    raise AssertionError("the last attempt returns or raises")


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def part_of(run: str, sources: Collection[str]) -> str:
    """The name of the part for a batch of these documents, in this order."""
    digest = hashlib.blake2b(json.dumps(list(sources)).encode(), digest_size=12).hexdigest()
    return f"{PARTS}/{run}/{digest}.parquet"


# Batches that a worker has begun and not ended, in files: how a document that kills its worker is found.
#
# Ray restarts a dead worker and gives it the same batches; only one worker has a batch at a time. Only a file
# can show it that it has had them before. The files belong to one run: a run that is killed as a whole blames
# no document.


@dataclass(frozen=True)
class Attempts:
    """The attempts at one segment's batches, in a job's output folder."""

    output: Folder
    segment: str

    def begin(self, sources: Sequence[str], *, alone: bool = False) -> int:
        """Save that a batch of these documents is begun; how often it was begun before and did not end.
        Attempts `alone`, with nothing else under way, count apart: in these the batch itself is to blame."""
        file = self._file(sources, alone)
        before = int(self._read(file) or 0)
        self.output.write(file, str(before + 1).encode())
        return before

    def save_reason(self, sources: Sequence[str], words: str) -> None:
        """Save why the worker is about to end itself."""
        self.output.write(f"{self._file(sources)}.why", words.encode())

    def reason(self, sources: Sequence[str]) -> str:
        """Why a worker ended itself; empty for one that was killed."""
        return self._read(f"{self._file(sources)}.why").decode()

    def end(self, sources: Sequence[str], *, alone: bool = False) -> None:
        """Save that the worker has survived the batch."""
        self.output.remove(self._file(sources, alone))
        self.output.remove(f"{self._file(sources)}.why")

    def save_survival(self) -> None:
        """Save that a worker of this run has survived documents."""
        self.output.write(self._survival, b"yes")

    def set_aside(self) -> int:
        """Count a document that killed its worker; how many did, or 0 once a worker of the run survived."""
        unique = uuid.uuid4().bytes  # several workers may be here at once
        number = next(
            n for n in count(1) if self.output.create(f"{ATTEMPTS}/{self.segment}.aside-{n}", unique)
        )
        return 0 if self._read(self._survival) else number

    @property
    def _survival(self) -> str:
        return f"{ATTEMPTS}/{self.segment}.lived"

    def _read(self, file: str) -> bytes:
        with suppress(FileNotFoundError):
            return self.output.read(file)
        return b""

    def _file(self, sources: Sequence[str], alone: bool = False) -> str:
        digest = hashlib.blake2b("\n".join(sources).encode(), digest_size=12).hexdigest()
        return f"{ATTEMPTS}/{self.segment}-{'alone-' if alone else ''}{digest}"
