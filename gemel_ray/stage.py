"""What a stage promises.

1. It is told the columns it reads and no others; it gives the columns it writes, with exactly their types.
2. As many rows out as in, in the same order.
3. It keeps no memory between batches, and several batches may be in it at once.
4. A batch's size and neighbours never change a row's answer (but for rounding on a GPU).
5. A row it cannot do gets a reason in `error`, and the others go on; an exception is the stage's
   own fault and stops the run.
6. It knows nothing of Ray, Kubernetes, replicas, GPUs or retries.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import pyarrow as pa

from gemel_ray.errors import GraphError

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

ERROR = pa.field("error", pa.string())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the graph. Its fields are its configuration (setting.py), and, but for those of the machine,
    its share of the fingerprint.

    `explodes` names list columns of equal length: before this stage every document becomes one row
    for each of their elements, and the lists become columns (see graph.explode).
    """

    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[pa.Schema]
    explodes: ClassVar[tuple[str, ...]] = ()
    # The module whose `start(stage, workspace, line)` makes the work: heavy ones are imported only where they
    # start. A stage that has none overrides `start`.
    work: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """As the configuration calls it."""
        return type(self).__name__.lower()

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        """Make the heavy things, in the process that will use them. `line`: the graph's stages, whose
        settings it may go by (see `settings_of`)."""
        if not self.work:
            raise NotImplementedError(f"stage {self.name} has neither `start` nor the module of its `work`")
        made: Work = import_module(self.work).start(self, workspace, line)
        return made


_S = TypeVar("_S", bound=Stage)


def settings_of(kind: type[_S], line: Iterable[Stage]) -> _S:
    """The stage of this kind in a line; where none is, as it is by default."""
    return next((stage for stage in line if isinstance(stage, kind)), kind())


class Work:
    """A started stage. `waits`: it is a coroutine, awaited while others compute; else a thread calls it."""

    waits: ClassVar[bool] = False

    def __call__(self, batch: pa.Table) -> pa.Table | Awaitable[pa.Table]:
        """The written columns for a batch of rows, with an `error` column where a row may fail."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise when it can work no more, whatever it is given."""

    def renewed(self, workspace: Workspace) -> Work:
        """The same on another version of the knowledge: what is heavy, models and engine, is shared with this
        one, which goes on meanwhile. A stage without knowledge is its own successor."""
        return self

    def retire(self) -> None:
        """Give back this version's knowledge; what a renewed one shares stays."""

    def close(self) -> None:
        """Give back all that `start` made: of works renewed from each other, the last one's is called."""

    def measures(self) -> dict[str, Any]:
        """Counts since the start, for the manifest: whatever adds up over workers."""
        return {}


def answer(schema: pa.Schema, columns: dict[str, Any], errors: list[str | None] | None = None) -> pa.Table:
    """A stage's output table from plain lists or arrays, in exactly the declared types."""
    made = {f.name: c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in schema}
    table = pa.table(made, schema)
    return table if errors is None else table.append_column(ERROR, [pa.array(errors, pa.string())])


async def called(stage: Stage, work: Work, batch: pa.Table) -> pa.Table:
    """What a work makes of a batch, held against what its stage promised. One that computes goes to a thread,
    so that those that wait are served meanwhile. Raises GraphError."""
    if work.waits:
        written: pa.Table = await cast(Awaitable[pa.Table], work(batch))
    else:
        written = cast(pa.Table, await asyncio.to_thread(work, batch))
    if inspect.iscoroutine(written):
        written.close()
        raise GraphError(f"stage {stage.name} waits: its {type(work).__name__} must say `waits = True`")
    _check(stage, written, len(batch))
    return written


def _check(stage: Stage, written: pa.Table, rows: int) -> None:
    """A stage that loses a row or writes another type is a fault, and stops the run."""
    if len(written) != rows:
        raise GraphError(f"stage {stage.name} was given {rows} rows and returned {len(written)}")
    promised = written.schema.names[: len(stage.writes)]
    if not written.select(promised).schema.equals(stage.writes):
        raise GraphError(f"stage {stage.name} promised {stage.writes} and wrote {written.schema}")
