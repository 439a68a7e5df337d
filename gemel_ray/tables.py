"""The runner's operations on tables: explode lists to rows, and set status and reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.stage import ERROR

STATUS = pa.field("status", pa.string())  # null: in progress; linked, nil or error: has its answer


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


def combined(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


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


def listed(parts: Sequence[npt.NDArray[Any]], of: pa.DataType) -> pa.ListArray:
    """A list array with the numbers of each array."""
    offsets = np.concatenate([[0], np.cumsum(list(map(len, parts)), dtype=np.int64)])
    flat = np.concatenate([np.empty(0, of.to_pandas_dtype()), *parts]).astype(of.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, of))
