"""The input of an output folder: its files must stay what they were, since rows are known by their number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from gemel_ray.object_folder import Place, folder_at

_NOTE, _HEAD = "inputs.json", 2**16


def absolute(address: str) -> str:
    """The address as it is known from any folder."""
    return address if "://" in address else str(Path(address).absolute())


def unchanged(output: Place, inputs: Sequence[str]) -> None:
    """Note what the input's files are, beside what earlier runs noted. A file may have grown. Raises
    ValueError for one that has become another: its rows would be taken for others that are done."""
    at, known = folder_at(output), dict[str, dict[str, Any]]()
    with suppress(FileNotFoundError):
        known = json.loads(at.read(_NOTE))
    for address in inputs:
        now, before = _look(address, known.get(address, {}).get("head_bytes", _HEAD)), known.get(address)
        if before and now and (now["bytes"] < before["bytes"] or now["head"] != before["head"]):
            raise ValueError(
                f"{address} is not the file it was when {output} was begun, so its rows cannot be told from "
                f"those done: give another --output, or put the file back"
            )
        if now and not before:
            known[address] = now
    at.write(_NOTE, json.dumps(known, indent=1).encode())


def _look(address: str, head: int) -> dict[str, Any] | None:
    """Size, and a digest of the first bytes; None where the file cannot be read, which its rows will say."""
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        size = int(filesystem.size(path))
        with filesystem.open(path, "rb") as file:
            first = file.read(head)
    except Exception:  # every store has its own errors
        return None
    digest = hashlib.blake2b(first, digest_size=16).hexdigest()
    return {"bytes": size, "head_bytes": len(first), "head": digest}
