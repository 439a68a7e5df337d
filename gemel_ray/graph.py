"""A checked line of stages, which is cut into segments.

The graph compares what stages read and write when it is built, and knows each column's last reader: there the
column is dropped, so that pixels never travel to the language model. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from gemel_ray.checked import nearest
from gemel_ray.errors import GraphError
from gemel_ray.segments import OnlineSegment, SegmentOptions
from gemel_ray.stage import ERROR, FINGERPRINT, STATUS, Segment, Stage, Step, Work

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

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
        given, steps = started or {}, list[Step]()
        for stage, kept in list(zip(self.stages, self._read_after, strict=True))[start : start + len(names)]:
            work = given.get(stage.name) or stage.start(workspace, self.stages)
            steps.append(Step(stage, work, kept))
        result = self.result if start + len(names) == len(order) else None
        return Segment(tuple(steps), result, self.fingerprint, self.knowledge, frozenset(given))


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
