"""A checked line of stages, and the runner that job, endpoint and library share.

The graph compares what stages read and write when it is built, and knows each column's last
reader: there the column is dropped, so that pixels never travel to the language model. Rows that
have their answer, good or bad (`status` is set), skip all later stages. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.checked import nearest
from gemel_ray.errors import GraphError
from gemel_ray.segments import OnlineSegment, SegmentOptions
from gemel_ray.stage import ERROR, Measures, Stage, Work, combined

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

STATUS = pa.field("status", pa.string())  # null: in progress; linked, nil or error: has its answer
FINGERPRINT = pa.field("fingerprint", pa.string())


_P = TypeVar("_P", bound=SegmentOptions | OnlineSegment)


@dataclass(frozen=True)
class Graph:
    """`stages` in order, from rows of `source` to rows of `result`."""

    stages: tuple[Stage, ...]
    source: pa.Schema
    result: pa.Schema
    fingerprint: str = ""  # of configuration, models and knowledge; in every result
    knowledge: str = ""  # the version of the knowledge, as users know it

    def __post_init__(self) -> None:
        have = {f.name for f in self.source} | {STATUS.name, ERROR.name, FINGERPRINT.name}
        for stage in self.stages:
            if missing := [c for c in (*stage.explodes, *stage.reads) if c not in have | self._inner(stage)]:
                raise GraphError(
                    f"stage {stage.name} reads {', '.join(missing)}, which no earlier stage writes "
                    f"(there is {', '.join(sorted(have))})"
                )
            have -= set(stage.explodes)
            if twice := sorted(have & (self._inner(stage) - {ERROR.name})):
                raise GraphError(
                    f"stage {stage.name} explodes into {', '.join(twice)}, which is there already"
                )
            have |= self._inner(stage)
            if twice := [c for c in stage.writes.names if c in have]:
                raise GraphError(f"stage {stage.name} writes {', '.join(twice)}, which is there already")
            have |= set(stage.writes.names)
        if missing := [c for c in self.result.names if c not in have]:
            raise GraphError(f"no stage writes {', '.join(missing)}, which the result needs")

    def _inner(self, stage: Stage) -> set[str]:
        """Columns that exploding before a stage makes."""
        inner: set[str] = set()
        for column in stage.explodes:
            element = self._type(column).value_type
            inner |= {f.name for f in element} if pa.types.is_struct(element) else {column.removesuffix("s")}
        return inner

    def _type(self, column: str) -> Any:
        for schema in (self.source, *(s.writes for s in self.stages)):
            if column in schema.names:
                return schema.field(column).type
        raise GraphError(f"no stage writes {column}")

    @cached_property
    def _read_after(self) -> list[set[str]]:
        """For each stage, the columns that a later one, or the result, reads."""
        read = [{STATUS.name, ERROR.name, *self.result.names}]
        for stage in self.stages[:0:-1]:
            read.append(read[-1].union(stage.reads, stage.explodes))
        return read[::-1]

    @cached_property
    def names(self) -> list[str]:
        """The stages' names, in order."""
        return [stage.name for stage in self.stages]

    def cut(self, segments: Sequence[_P]) -> list[tuple[_P, bool]]:
        """Each segment, and whether its rows are whole documents. Raises GraphError unless all stages are in
        one."""
        named, line = [stage for placed in segments for stage in placed.stages], self.names
        right = f"segments must hold {', '.join(line)}, in this order and each once"
        for stage in named:
            if stage not in line:
                raise GraphError(f"{right}; there is no stage {stage}: {nearest(stage, line)}")
            if named.count(stage) > 1:
                raise GraphError(f"{right}; {stage} is there {named.count(stage)} times")
        if missing := [stage for stage in line if stage not in named]:
            raise GraphError(f"{right}; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        if named != line:
            raise GraphError(f"{right}, not {', '.join(named)}")
        if empty := [i for i, placed in enumerate(segments) if not placed.stages]:
            raise GraphError(f"segments[{empty[0]}] has no stages")
        multiply = [stage.name for stage in self.stages if stage.explodes]
        last = line.index(multiply[0]) if multiply else len(line)
        return [(placed, line.index(placed.stages[0]) <= last) for placed in segments]

    def segment(
        self, names: Sequence[str], workspace: Workspace, started: Mapping[str, Work] | None = None
    ) -> Segment:
        """The adjacent stages `names` in this process. Those `started` already are used as they are, and
        their owner closes them."""
        order = self.names
        start = order.index(names[0]) if names and names[0] in order else len(order)
        if not names or order[start : start + len(names)] != list(names):
            raise GraphError(f"a segment takes adjacent stages of {order}, not {list(names)}")
        given, works = started or {}, list[tuple[int, Work]]()
        for index, name in enumerate(names, start):
            works.append((index, given.get(name) or self.stages[index].start(workspace, self.stages)))
        return Segment(self, tuple(works), borrowed=frozenset(given))


@dataclass
class Segment:
    """Adjacent stages, started in one process. `run` takes any number of batches at once."""

    graph: Graph
    works: tuple[tuple[int, Work], ...]
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)  # seconds of the stages' threads
    began: float | None = None  # the process's processor seconds before its first batch
    borrowed: frozenset[str] = frozenset()  # stages that their owners close

    async def run(self, table: pa.Table, seconds: dict[str, float] | None = None) -> pa.Table:
        """Rows in, rows out, in order; documents become mentions at the stage that explodes them. Each
        stage's time is added to `seconds`, too."""
        totals = [self.seconds] if seconds is None else [self.seconds, seconds]
        self.began = time.process_time() if self.began is None else self.began
        for column in (STATUS, ERROR):
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        for index, work in self.works:
            began, name = time.perf_counter(), self.graph.names[index]
            table = await self._through(index, work, table)
            for total in totals:
                total[name] = total.get(name, 0.0) + time.perf_counter() - began
        if self.works[-1][0] < len(self.graph.stages) - 1:
            return table
        fingerprint = pa.repeat(pa.scalar(self.graph.fingerprint), len(table))
        table = settled(table).append_column(FINGERPRINT, fingerprint)
        return table.select(self.graph.result.names).cast(self.graph.result)

    async def _through(self, index: int, work: Work, table: pa.Table) -> pa.Table:
        """The rows after a stage, which sees those without an answer."""
        stage = self.graph.stages[index]
        table = settled(explode(table, stage.explodes) if stage.explodes else table)
        active = pc.indices_nonzero(pc.is_null(table[STATUS.name]))
        read, written, spent = table.select(stage.reads), stage.writes.empty_table(), 0.0
        skips = len(active) < len(table)  # taking all rows would copy them, pictures included
        if len(active):
            written, spent = await called(stage, work, read.take(active) if skips else read)
        name = self.graph.names[index]
        self.rows[name] = self.rows.get(name, 0) + len(active)
        self.processor[name] = self.processor.get(name, 0.0) + spent
        # Row i of the table is row back[i] of what was written, or null if it was skipped.
        back = pc.index_in(pa.array(range(len(table)), active.type), value_set=active) if skips else None
        for column in written.schema:
            values = written[column.name] if back is None else combined(written[column.name]).take(back)
            if column.name in (STATUS.name, ERROR.name):  # a row keeps what it has
                table = replaced(table, column, pc.coalesce(table[column.name], values))
            else:
                table = table.append_column(column, values)
        return table.select([c for c in table.column_names if c in self.graph._read_after[index]])

    def check(self) -> None:
        """Raise if a stage has failed for good, and this process must be replaced."""
        for _, work in self.works:
            work.check()

    def renewed(self, workspace: Workspace, fingerprint: str) -> Segment:
        """The same stages on another version of the knowledge. Models and engine are shared with this
        segment, which keeps running. Takes seconds: call it in a thread, give new batches to the new one, and
        `retire` this one when its batches are done. If it fails, this one is unchanged."""
        works: list[tuple[int, Work]] = []
        try:
            for index, work in self.works:
                works.append((index, work.renewed(workspace)))
        except BaseException:
            for (_, made), (_, existing) in zip(works, self.works, strict=False):
                if made is not existing:
                    made.retire()
            raise
        graph = replace(self.graph, fingerprint=fingerprint, knowledge=workspace.knowledge)
        return Segment(graph, tuple(works), borrowed=self.borrowed)

    def retire(self) -> None:
        """Release what this segment does not share with a renewed one. No batch may be under way."""
        for _, work in self.works:
            work.retire()

    def close(self) -> None:
        """Close the stages, last first; of segments renewed from each other, close only the last one."""
        for index, work in reversed(self.works):
            if self.graph.stages[index].name not in self.borrowed:
                work.close()

    def measures(self) -> Measures:
        """By stage: rows, seconds (concurrent batches each count in full), processor seconds, and the
        stage's counts."""
        counts = {self.graph.names[i]: work.measures() for i, work in self.works}
        return {
            "seconds": dict(self.seconds),
            "rows": dict(self.rows),
            "processor": self._processor(),
            **{k: v for k, v in counts.items() if v},
        }

    def _processor(self) -> dict[str, float]:
        """Seconds since the first batch, which add up to the process's. What no stage's thread used is
        the stage's that waits, as for an engine in this process; without one it is `rest`."""
        if self.began is None:
            return {}
        rest = time.process_time() - self.began - sum(self.processor.values())
        waiting = [self.graph.names[i] for i, work in self.works if work.waits]
        return self.processor | {(waiting or ["rest"])[-1]: max(0.0, rest)}


# What the runner does to tables: call a stage, explode lists to rows, set status and reason.


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


def run_in_process(segment: Segment, batches: Iterator[pa.Table], overlap: int = 4) -> Iterator[pa.Table]:
    """The graph in this process: batches in, results out in order, `overlap` of them under way."""
    with asyncio.Runner() as runner:
        under_way: list[asyncio.Task[pa.Table]] = []
        loop = runner.get_loop()
        try:
            for batch in batches:
                under_way.append(loop.create_task(segment.run(batch)))
                if len(under_way) >= overlap:
                    yield loop.run_until_complete(under_way.pop(0))
            while under_way:
                yield loop.run_until_complete(under_way.pop(0))
        finally:  # a batch's error, or the caller's end, ends the others
            for task in under_way:
                task.cancel()
            if under_way:
                loop.run_until_complete(asyncio.wait(under_way))
