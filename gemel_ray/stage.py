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

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

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

    @property
    def name(self) -> str:
        """As the configuration calls it."""
        return type(self).__name__.lower()

    def start(self, workspace: Workspace) -> Work:
        """Make the heavy things, in the process that will use them."""
        raise NotImplementedError


class Work:
    """A started stage."""

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
