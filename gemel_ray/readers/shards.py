"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): a pair a row.

A pair is the consecutive members whose names are equal up to the first dot of their last part:
000000123.jpg, 000000123.txt, 000000123.json. A shard is read as a stream, nothing is ever extracted, and
what is no plain file in it (links, devices) is passed over, whatever it claims to point to.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any

import fsspec

from gemel_ray.readers.fields import BadRecord

SHARDS = (".tar", ".tar.gz", ".tgz")
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_TEXTS = ("txt", "text", "caption")
_LARGEST = 64 * 2**20  # bytes of a member that is read: what a stream claims is not believed beyond that


def tar_rows(address: str) -> Iterator[tuple[int, Any]]:
    """The pairs, numbered from 1, as the fields of their .json with `key`, `caption` and `image`. Raises
    tarfile's errors for a shard that is damaged or ends too soon, after the pairs before that."""
    with fsspec.open(address, "rb") as file:
        raw: Any = _Watched(file)
        shard = tarfile.open(fileobj=raw, mode="r|*")  # noqa: SIM115  # a stream of ours: nothing to close
        number, last, pair = 0, None, dict[str, Any]()
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # a stream goes back to none of them
            name = member.name.rpartition("/")
            stem, dot, kind = name[2].partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            key = f"{name[0]}/{stem}" if name[0] else stem
            if key != last and last is not None:
                number += 1
                yield number, _row(last, pair)
                pair = {}
            last = key
            _add(pair, kind.lower(), member, shard)
        if not address.endswith((".gz", ".tgz")) and any(raw.last):
            raise tarfile.ReadError("it ends too soon")  # tarfile itself takes a lost header for the end
        if last is not None:
            yield number + 1, _row(last, pair)


class _Watched:
    """A stream that remembers the last 1,024 bytes it gave: of a whole tar file they are zeros."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.last = stream, b""

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self.last = (self.last + data)[-1024:]
        return data


def _add(pair: dict[str, Any], kind: str, member: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """What a member adds to its pair; a field `wrong` where it cannot be used."""
    field = "image" if kind in _PICTURES else "caption" if kind in _TEXTS else kind
    if field not in ("image", "caption", "json"):
        return
    if member.size > _LARGEST:
        pair["wrong"] = f"{member.name} declares {member.size:,} bytes; at most {_LARGEST:,} are read"
        return
    file = shard.extractfile(member)
    data = file.read() if file else b""
    try:
        pair[field] = data if field == "image" else data.decode() if field == "caption" else json.loads(data)
    except (ValueError, RecursionError) as fault:
        pair["wrong"] = f"{member.name} cannot be read: {str(fault).splitlines()[0]}"


def _row(key: str, pair: dict[str, Any]) -> Any:
    if "wrong" in pair:
        return BadRecord(pair["wrong"])
    fields = pair.pop("json", {})
    if not isinstance(fields, dict):
        return BadRecord(f"{key}.json is not a JSON object")
    return {**fields, "key": key, **pair}
