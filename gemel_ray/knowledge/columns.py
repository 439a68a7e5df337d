"""Columns of memory-mapped tables, of which one chunk at a time is in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def values(column: pa.ChunkedArray) -> Iterator[Any]:
    """All values, in their order."""
    for chunk in column.chunks:
        yield from chunk.to_pylist()
