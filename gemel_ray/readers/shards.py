"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): a pair a row.

A pair is the consecutive members whose names are equal up to the first dot of their last part:
000000123.jpg, 000000123.txt, 000000123.json. A shard is read as a stream, nothing is ever extracted, and
what is no plain file in it (links, devices) is passed over, whatever it claims to point to.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any, Self

import fsspec

from gemel_ray.readers.fields import BadRecord

SHARDS = (".tar", ".tar.gz", ".tgz")
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_TEXTS = ("txt", "text", "caption")
_LARGEST = 64 * 2**20  # bytes of a member that is read: what a stream claims is not believed beyond that
_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_LONGEST = 2**20  # bytes of a header: a name, or a set of properties


def tar_rows(address: str) -> Iterator[tuple[int, Any]]:
    """The pairs, numbered from 1, as the fields of their .json with `key`, `caption` and `image`. Raises
    tarfile's errors for a shard that is damaged or ends too soon, after the pairs before that."""
    with fsspec.open(address, "rb") as file:
        source: Any = file
        # A stream of ours: nothing to close.
        shard = tarfile.open(fileobj=source, mode="r|*", tarinfo=_Member)  # noqa: SIM115
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
        if last is not None:
            yield number + 1, _row(last, pair)


class _Member(tarfile.TarInfo):
    """Of a stream that must end in a block of zeros: tarfile takes a header that is damaged or missing for
    the end as well, and what is behind it would be lost without a word. It also reads a long header as long
    as it claims to be."""

    @classmethod
    def frombuf(cls, *header: Any) -> Self:
        made = super().frombuf(*header)
        if made.type in _LONG and made.size > _LONGEST:
            raise tarfile.ReadError(f"it is damaged: a name of {made.size:,} bytes")
        if made.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it holds sparse files: write it without tar's --sparse")
        return made

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.InvalidHeaderError as fault:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is damaged: {fault}") from fault
        except tarfile.HeaderError as fault:
            raise tarfile.ReadError("it ends too soon") from fault


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
