"""A look at the first documents of the input, to say before hours are spent what of it is not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gemel_ray.readers.reading import BATCH, documents
from gemel_ray.readers.unread import counted, said

_FILES = 16  # that are looked into


def first_look(files: Sequence[str]) -> list[str]:
    """What is not read of the first documents of the first files, in words."""
    looked, found = 0, {"unread": Counter[str](), "unread_pictures": Counter[str]()}
    for address in files[:_FILES]:
        table = next(documents(address, batch=BATCH), None)
        if table is None:
            continue
        looked += len(table)
        for name, counts in counted(table).items():
            found[name].update(counts)
    return [f"of the first {looked:,} documents: {line}" for line in said(found)]
