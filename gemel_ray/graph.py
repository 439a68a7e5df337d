"""A checked line of stages, and the runner that job, endpoint and library share.

The graph compares what stages read and write when it is built, and knows each column's last
reader: there the column is dropped, so that pixels never travel to the language model. Rows that
have their answer, good or bad (`status` is set), skip all later stages. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.checked import nearest
from gemel_ray.errors import GraphError
from gemel_ray.segments import OnlineSegment, SegmentOptions
from gemel_ray.stage import ERROR, Stage, Work, called
from gemel_ray.tables import STATUS, combined, explode, failed, replaced, settled

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

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

    def kept_after(self, stop: int) -> set[str]:
        """Columns that stage `stop` or a later one, or the result, still reads."""
        later = self.stages[stop:]
        needed = {STATUS.name, ERROR.name, *self.result.names}
        return needed.union(*((*s.reads, *s.explodes) for s in later)) if later else needed

    @property
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
    borrowed: frozenset[str] = frozenset()  # stages that their owners close
    under_way: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, table: pa.Table, seconds: dict[str, float] | None = None) -> pa.Table:
        """Rows in, rows out, in order; documents become mentions at the stage that explodes them. Each
        stage's time is added to `seconds`, too."""
        with self.occupied():
            return await self._run(table, {} if seconds is None else seconds)

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Keep `retire` waiting inside the block."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self.idle.set()

    async def _run(self, table: pa.Table, seconds: dict[str, float]) -> pa.Table:
        for column in (STATUS, ERROR):
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        for index, work in self.works:
            stage = self.graph.stages[index]
            if stage.explodes:
                table = explode(table, stage.explodes)
            table = settled(table)
            began = time.perf_counter()
            table = await self._apply(stage, work, table)
            for total in (self.seconds, seconds):
                total[stage.name] = total.get(stage.name, 0.0) + time.perf_counter() - began
            kept = self.graph.kept_after(index + 1)
            table = table.select([c for c in table.column_names if c in kept])
        if self.works[-1][0] == len(self.graph.stages) - 1:
            table = settled(table).append_column(
                FINGERPRINT, pa.repeat(pa.scalar(self.graph.fingerprint), len(table))
            )
            table = table.select(self.graph.result.names).cast(self.graph.result)
        return table

    async def _apply(self, stage: Stage, work: Work, table: pa.Table) -> pa.Table:
        active = pc.indices_nonzero(pc.is_null(table[STATUS.name]))
        if len(active):
            written = await called(stage, work, table.select(stage.reads).take(active))
        else:
            written = stage.writes.empty_table()
        self.rows[stage.name] = self.rows.get(stage.name, 0) + len(active)
        # Row i of the table is row back[i] of what was written, or null if it was skipped.
        back = pc.index_in(pa.array(range(len(table)), active.type), value_set=active)
        for column in stage.writes:
            table = table.append_column(column, combined(written[column.name]).take(back))
        if STATUS.name in written.column_names:
            status = combined(written[STATUS.name]).take(back)
            table = replaced(table, STATUS, pc.coalesce(table[STATUS.name], status))
        if ERROR.name in written.column_names:
            table = failed(table, combined(written[ERROR.name]).take(back))
        return table

    def check(self) -> None:
        """Raise if a stage has failed for good, and this process must be replaced."""
        for _, work in self.works:
            work.check()

    def renewed(self, workspace: Workspace, fingerprint: str) -> Segment:
        """The same stages on another version of the knowledge. Models and engine are shared with this
        segment, which keeps running. Takes seconds: call it in a thread, give new batches to the new one, and
        `retire` this one. If it fails, this one is unchanged."""
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

    async def retire(self) -> None:
        """When the batches under way are done, release what this segment does not share with a renewed
        one."""
        while self.under_way:
            self.idle.clear()
            await self.idle.wait()
        for _, work in self.works:
            work.retire()

    def close(self) -> None:
        """Close the stages, last first; of segments renewed from each other, close only the last one."""
        for index, work in reversed(self.works):
            if self.graph.stages[index].name not in self.borrowed:
                work.close()

    def measures(self) -> dict[str, Any]:
        """By stage: rows, seconds (concurrent batches each count in full), and the stage's counts."""
        counts = {self.graph.stages[i].name: work.measures() for i, work in self.works}
        return {
            "seconds": dict(self.seconds),
            "rows": dict(self.rows),
            **{k: v for k, v in counts.items() if v},
        }


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
