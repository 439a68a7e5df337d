"""The contract of a stage.

1. It gets only the columns it reads, and returns only the columns it writes, with exactly their types.
2. As many rows out as in, in the same order.
3. It keeps no state between batches, and several batches may be in it at once.
4. A batch's size and other rows never change a row's answer (except for rounding on a GPU).
5. A row that fails gets a reason in `error`, and the others continue; an exception is a bug of the stage
   and stops the run.
6. It knows nothing of Ray, Kubernetes, replicas, GPUs or retries.

And the runner of adjacent stages, which job, endpoint and library share. Rows that have their answer, good or
bad (`status` is set), skip all later stages.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.errors import GraphError

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

Measures = dict[str, Any]  # nested counts by name
STATUS = pa.field("status", pa.string())  # null: in progress; linked, nil or error: has its answer
ERROR = pa.field("error", pa.string())
FINGERPRINT = pa.field("fingerprint", pa.string())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the graph. Its fields are its configuration (setting.py), and, except for those of the
    machine, its share of the fingerprint.

    `explodes` names list columns of equal length: before this stage every document becomes one row
    for each of their elements, and the lists become columns (see `explode`).
    """

    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[pa.Schema]
    explodes: ClassVar[tuple[str, ...]] = ()
    # The module whose `start(stage, workspace, line)` makes the work: heavy modules are imported only where
    # they start. A stage without one overrides `start`.
    work: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The stage's name in the configuration."""
        return type(self).__name__.lower()

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        """Load models and data in the process that will use them. `line`: the graph's stages, whose settings
        it may use (see `settings_of`)."""
        if not self.work:
            raise NotImplementedError(f"stage {self.name} has neither `start` nor the module of its `work`")
        made: Work = import_module(self.work).start(self, workspace, line)
        return made


_S = TypeVar("_S", bound=Stage)


def settings_of(kind: type[_S], line: Iterable[Stage]) -> _S:
    """The stage of this kind in a line; if there is none, one with default settings."""
    return next((stage for stage in line if isinstance(stage, kind)), kind())


class Work:
    """A started stage. `waits`: it is a coroutine, awaited while others compute; else it runs in a thread."""

    waits: ClassVar[bool] = False

    def __call__(self, batch: pa.Table) -> pa.Table | Awaitable[pa.Table]:
        """The written columns for a batch of rows, with an `error` column if rows may fail."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise if it has failed for good."""

    def renewed(self, workspace: Workspace) -> Work:
        """The same on another version of the knowledge: models and engine are shared with this one, which
        keeps running. A stage without knowledge returns itself."""
        return self

    def retire(self) -> None:
        """Release this version's knowledge, but not what a renewed one shares."""

    def close(self) -> None:
        """Release all that `start` made; of works renewed from each other, only the last one is closed."""

    def measures(self) -> Measures:
        """Counts since the start, for the manifest, which adds them up over workers."""
        return {}


@dataclass
class Step:
    """A stage in a segment: its work, the columns that a later stage or the result reads (`kept`), and its
    measures."""

    stage: Stage
    work: Work
    kept: Collection[str]
    rows: int = 0
    seconds: float = 0.0
    processor: float = 0.0  # seconds of its threads


@dataclass
class Segment:
    """Adjacent stages, started in one process. `run` takes any number of batches at once. `result`: the
    columns of the last stage's segment."""

    steps: tuple[Step, ...]
    result: pa.Schema | None
    fingerprint: str
    knowledge: str
    borrowed: frozenset[str] = frozenset()  # stages that their owners close
    began: float | None = None  # the process's processor seconds before its first batch
    closed: bool = False

    async def run(self, table: pa.Table, seconds: dict[str, float] | None = None) -> pa.Table:
        """Rows in, rows out, in order; documents become mentions at the stage that explodes them. Each
        stage's time is put into `seconds`, too."""
        self.began = time.process_time() if self.began is None else self.began
        for column in (STATUS, ERROR):
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        for step in self.steps:
            began = time.perf_counter()
            table = await _through(step, table)
            spent = time.perf_counter() - began
            step.seconds += spent
            if seconds is not None:
                seconds[step.stage.name] = spent
        if self.result is None:
            return table
        fingerprint = pa.repeat(pa.scalar(self.fingerprint), len(table))
        table = settled(table).append_column(FINGERPRINT, fingerprint)
        return table.select(self.result.names).cast(self.result)

    def part(self, start: int, end: int) -> Segment:
        """Some of its stages, as a segment that runs by itself; this one is to be closed."""
        result = self.result if end == len(self.steps) else None
        return replace(self, steps=self.steps[start:end], result=result, began=None)

    def check(self) -> None:
        """Raise if a stage has failed for good, and this process must be replaced."""
        for step in self.steps:
            step.work.check()

    def renewed(self, workspace: Workspace, fingerprint: str) -> Segment:
        """The same stages on another version of the knowledge. Models and engine are shared with this
        segment, which keeps running. Takes seconds: call it in a thread, give new batches to the new one, and
        `retire` this one when its batches are done. If it fails, this one is unchanged."""
        steps: list[Step] = []
        try:
            for step in self.steps:
                steps.append(Step(step.stage, step.work.renewed(workspace), step.kept))
        except BaseException:
            for made, existing in zip(steps, self.steps, strict=False):
                if made.work is not existing.work:
                    made.work.retire()
            raise
        return Segment(tuple(steps), self.result, fingerprint, workspace.knowledge, self.borrowed)

    def retire(self) -> None:
        """Release what this segment does not share with a renewed one. No batch may be under way."""
        for step in self.steps:
            step.work.retire()

    def close(self) -> None:
        """Close the stages, last first; of segments renewed from each other, close only the last one. Closing
        again does nothing."""
        if self.closed:
            return
        self.closed = True
        for step in reversed(self.steps):
            if step.stage.name not in self.borrowed:
                step.work.close()

    def measures(self) -> Measures:
        """By stage: rows, seconds (concurrent batches each count in full), processor seconds, and the
        stage's counts."""
        ran = [step for step in self.steps if step.seconds]
        counts = {step.stage.name: step.work.measures() for step in self.steps}
        return {
            "seconds": {step.stage.name: step.seconds for step in ran},
            "rows": {step.stage.name: step.rows for step in ran},
            "processor": self._processor(),
            **{k: v for k, v in counts.items() if v},
        }

    def _processor(self) -> dict[str, float]:
        """Seconds since the first batch, which add up to the process's. What no stage's thread used is
        the stage's that waits, as for an engine in this process; without one it is `rest`."""
        if self.began is None:
            return {}
        used = {step.stage.name: step.processor for step in self.steps}
        rest = time.process_time() - self.began - sum(used.values())
        waiting = [step.stage.name for step in self.steps if step.work.waits]
        return used | {(waiting or ["rest"])[-1]: max(0.0, rest)}


# What the runner does to tables: call a stage, explode lists to rows, set status and reason.


async def _through(step: Step, table: pa.Table) -> pa.Table:
    """The rows after a stage, which sees those without an answer."""
    stage = step.stage
    table = settled(explode(table, stage.explodes) if stage.explodes else table)
    active = pc.indices_nonzero(pc.is_null(table[STATUS.name]))
    read, written = table.select(stage.reads), stage.writes.empty_table()
    skips = len(active) < len(table)  # taking all rows would copy them, pictures included
    if len(active):
        written, spent = await called(stage, step.work, read.take(active) if skips else read)
        step.rows, step.processor = step.rows + len(active), step.processor + spent
    # Row i of the table is row back[i] of what was written, or null if it was skipped.
    back = pc.index_in(pa.array(range(len(table)), active.type), value_set=active) if skips else None
    for column in written.schema:
        values = written[column.name] if back is None else combined(written[column.name]).take(back)
        if column.name in (STATUS.name, ERROR.name):  # a row keeps what it has
            table = replaced(table, column, pc.coalesce(table[column.name], values))
        else:
            table = table.append_column(column, values)
    return table.select([c for c in table.column_names if c in step.kept])


async def called(stage: Stage, work: Work, batch: pa.Table) -> tuple[pa.Table, float]:
    """The output of a work for a batch, checked against its stage's contract, and the processor seconds of
    its thread. Work that computes runs in a thread, so that coroutines continue meanwhile; work that waits
    has none. Raises GraphError."""
    if work.waits:
        written, spent = await cast(Awaitable[pa.Table], work(batch)), 0.0
    else:
        written, spent = await asyncio.to_thread(_computed, work, batch)
    if inspect.iscoroutine(written):
        written.close()
        raise GraphError(f"stage {stage.name} waits: its {type(work).__name__} must say `waits = True`")
    if len(written) != len(batch):
        raise GraphError(f"stage {stage.name} was given {len(batch)} rows and returned {len(written)}")
    promised = written.schema.names[: len(stage.writes)]
    if not written.select(promised).schema.equals(stage.writes):
        raise GraphError(f"stage {stage.name} promised {stage.writes} and wrote {written.schema}")
    return written, spent


def _computed(work: Work, batch: pa.Table) -> tuple[pa.Table, float]:
    began = time.thread_time()
    written = cast(pa.Table, work(batch))
    return written, time.thread_time() - began


def explode(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """One row per element of the list columns; structs become columns with their fields' names, other lists
    lose their plural s. A document without elements stays one row: with its error, or, if it has no mentions,
    with the answer nil. A struct's `error` becomes the row's error."""
    count = _lengths(table[columns[0]])
    kept = np.maximum(count, 1)
    parent = np.repeat(np.arange(len(table)), kept)
    position = np.arange(len(parent)) - np.repeat(np.cumsum(kept) - kept, kept)
    out = table.drop_columns(list(columns)).take(pa.array(parent))
    for column in columns:
        flat = _elements(table[column], parent, position)
        if not pa.types.is_struct(flat.type):
            out = out.append_column(column.removesuffix("s"), flat)
            continue
        for inner in flat.type:
            made = pc.struct_field(flat, inner.name)
            out = failed(out, made) if inner.name == ERROR.name else out.append_column(inner, made)
    empty = pc.and_(pa.array(count[parent] == 0), pc.is_null(out[ERROR.name]))
    return replaced(out, STATUS, pc.if_else(empty, "nil", out[STATUS.name]))


def _lengths(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _elements(
    lists: pa.ChunkedArray, parent: npt.NDArray[np.int64], position: npt.NDArray[np.int64]
) -> pa.Array:
    """Element `position` of list `parent`; null if that list is null (its document failed) or too short."""
    length = _lengths(lists)
    index = (np.cumsum(length) - length)[parent] + position
    return pc.list_flatten(combined(lists)).take(pa.array(index, mask=position >= length[parent]))


def failed(table: pa.Table, reasons: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with these reasons as errors; a row keeps its first reason."""
    return replaced(table, ERROR, pc.coalesce(table[ERROR.name], reasons))


def replaced(table: pa.Table, column: pa.Field, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(column.name), column, values)


def settled(table: pa.Table) -> pa.Table:
    """The table with status error in rows with an error."""
    return replaced(table, STATUS, pc.if_else(pc.is_valid(table[ERROR.name]), "error", table[STATUS.name]))


# What stages make tables of, and read of them.


def answer(schema: pa.Schema, columns: Mapping[str, Any], errors: list[str | None] | None = None) -> pa.Table:
    """A stage's output table from lists or arrays, in exactly the declared types."""
    if errors is None:
        return pa.table(columns, schema)
    return pa.table({**columns, ERROR.name: errors}, schema.append(ERROR))


def arrays(lists: pa.ChunkedArray) -> list[npt.NDArray[Any] | None]:
    """The numbers of each list, as views; None for a null."""
    whole = combined(lists)
    values, there = whole.values.to_numpy(), pc.is_valid(whole).to_pylist()
    bounds = pairwise(whole.offsets.to_pylist())
    return [values[a:b] if known else None for (a, b), known in zip(bounds, there, strict=True)]


def matrix(vectors: pa.ChunkedArray, width: int = 0) -> npt.NDArray[np.float32]:
    """Lists of equal length (`width` if all are null) as rows; a null becomes a row of NaN."""
    array, there = combined(vectors), pc.is_valid(vectors).to_numpy()
    if not there.any():
        return np.full((len(there), width), np.nan, np.float32)
    flat = array.flatten().to_numpy().reshape(int(there.sum()), -1)
    if there.all():
        return flat  # type: ignore[no-any-return]
    found = np.full((len(there), flat.shape[1]), np.nan, np.float32)
    found[there] = flat
    return found


def combined(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
