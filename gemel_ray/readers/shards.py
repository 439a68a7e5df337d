"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): a pair a row.

What belongs together is told by the names (pairs.py). A member that comes a second time, or too far from its
pair, is a row of its own that says so. A shard is read as a stream, and nothing is ever extracted: a link in
it, which leads to a member that is gone by, is its pair's error; devices are passed over.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any, Self

import fsspec

from gemel_ray.readers.fields import not_json
from gemel_ray.readers.opening import is_from_storage, opened
from gemel_ray.readers.pairs import Apart, Pair, kind_of, row_of

SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
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
    number = 0
    # What tarfile knows to unpack it does, and tells of a stream that is cut short.
    with opened(address) if address.lower().endswith(".zst") else fsspec.open(address, "rb") as file:
        source: Any = file
        # A stream of ours: nothing to close.
        shard = tarfile.open(fileobj=source, mode="r|*", tarinfo=_Member)  # noqa: SIM115
        for pair in _pairs(shard):
            number += 1
            yield number, row_of(pair)


def _pairs(shard: tarfile.TarFile) -> Iterator[Pair]:
    """Members put together. Raises what tarfile raises, after the pairs before that."""
    pair: Pair | None = None
    apart = Apart()
    try:
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # a stream goes back to none of them
            folder, _, name = member.name.rpartition("/")
            stem, dot, kind = name.partition(".")
            if not (member.isfile() or member.issym() or member.islnk()) or not stem or not dot:
                continue
            following = apart.following(pair, f"{folder}/{stem}" if folder else stem, member.name)
            if following is not pair and pair is not None:
                yield from apart.put(pair)
            pair = following
            _add(pair, kind.lower(), member, shard)
    except Exception as fault:
        if not is_from_storage(fault):  # the shard is read again, and its pairs come in the same order
            yield from apart.rest()
        raise
    if pair is not None:
        yield from apart.put(pair)
    yield from apart.rest()


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


def _add(pair: Pair, kind: str, member: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """What a member adds to its pair; `wrong` where it cannot be used."""
    name = kind_of(kind.rpartition(".")[2] if pair.dotted else kind)
    if name is None:
        pair.left[kind] = member.name
        return
    if name in pair.members:
        pair.wrong = pair.wrong or f"{member.name}: the pair {pair.key} has {pair.members[name]} already"
        return
    pair.members[name] = member.name
    if not member.isfile():
        pair.wrong = (
            f"{member.name} is a link to {member.linkname:.60}: links in a shard are not followed; write it "
            "with tar --dereference --hard-dereference"
        )
    elif member.size > _LARGEST:
        pair.wrong = f"{member.name} declares {member.size:,} bytes; at most {_LARGEST:,} are read"
    else:
        file = shard.extractfile(member)
        _read(pair, name, member.name, file.read() if file else b"")


def _read(pair: Pair, name: str, member: str, data: bytes) -> None:
    pair.size += len(data)
    try:
        pair.fields[name] = (
            data if name == "image" else data.decode() if name == "caption" else json.loads(data)
        )
    except (ValueError, RecursionError) as fault:
        pair.wrong = f"{member} cannot be read: {not_json(fault)}"
