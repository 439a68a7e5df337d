"""The contract of a stage.

1. It gets only the columns it reads, and returns only the columns it writes, with exactly their types.
2. As many rows out as in, in the same order.
3. It keeps no state between batches, and several batches may be in it at once.
4. A batch's size and other rows never change a row's answer (except for rounding on a GPU).
5. A row that fails gets a reason in `error`, and the others continue; an exception is a bug of the stage
   and stops the run.
6. It knows nothing of Ray, Kubernetes, replicas, GPUs or retries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

Measures = dict[str, Any]  # nested counts by name
ERROR = pa.field("error", pa.string())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the graph. Its fields are its configuration (setting.py), and, except for those of the
    machine, its share of the fingerprint.

    `explodes` names list columns of equal length: before this stage every document becomes one row
    for each of their elements, and the lists become columns (see graph.explode).
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


def answer(schema: pa.Schema, columns: Mapping[str, Any], errors: list[str | None] | None = None) -> pa.Table:
    """A stage's output table from lists or arrays, in exactly the declared types."""
    made = {f.name: c if isinstance(c := columns[f.name], pa.Array) else pa.array(c, f.type) for f in schema}
    table = pa.table(made, schema)
    return table if errors is None else table.append_column(ERROR, [pa.array(errors, pa.string())])


def listed(parts: Sequence[npt.NDArray[Any]], of: pa.DataType) -> pa.ListArray:
    """A list array with the numbers of each array."""
    offsets = np.concatenate([[0], np.cumsum(list(map(len, parts)), dtype=np.int64)])
    flat = np.concatenate([np.empty(0, of.to_pandas_dtype()), *parts]).astype(of.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, of))


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
