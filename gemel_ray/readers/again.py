"""A file's rows in spite of storage that fails: opened again, read on behind the last row."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gemel_ray.readers.containers import rows
from gemel_ray.readers.fields import Numbered
from gemel_ray.readers.opening import is_from_storage

_PAUSES = (0.5, 2.0, 8.0)  # seconds before a file is opened again


class Unreachable(OSError):
    """Storage did not give the rest of a file: another run may read it."""


def steady_rows(address: str) -> Iterator[Numbered]:
    """The file's rows, each once. Raises Unreachable when storage goes on failing, and whatever a file that
    is foreign or cut short makes its library raise."""
    seen = 0
    for pause in (*_PAUSES, None):
        try:
            for position, row in enumerate(rows(address)):
                if position >= seen:
                    seen += 1
                    yield row
            return
        except Exception as fault:
            if not is_from_storage(fault):
                raise
            if pause is None:
                raise Unreachable(str(fault)) from fault
            time.sleep(pause)
