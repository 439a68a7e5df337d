"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): a pair a row.

A pair is the consecutive members whose names are equal up to the first dot of their last part:
000000123.jpg, 000000123.txt, 000000123.json. Where no such member is there, names with dots are pairs up to
their last one: photo.2021.jpg, photo.2021.txt. A member that comes a second time, or apart from its pair, is
a row of its own that says so. A shard is read as a stream, and nothing is ever extracted: a link in it, which
leads to a member that is gone by, is its pair's error; devices are passed over.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import fsspec

from gemel_ray.readers.fields import BadRecord
from gemel_ray.readers.names import TEXTS
from gemel_ray.readers.opening import opened

SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif",
             "svg", "ico", "jp2", "img", "image")  # fmt: skip
_TEXTS = ("txt", "text", "caption", "cap")
_FIELDS = ("image", "caption", "json")
_LARGEST = 64 * 2**20  # bytes of a member that is read: what a stream claims is not believed beyond that
_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_LONGEST = 2**20  # bytes of a header: a name, or a set of properties


@dataclass
class _Pair:
    """Members so far: of `stem`, the name up to the first dot, or with `dotted` of that up to the last."""

    key: str
    stem: str
    dotted: bool
    fields: dict[str, Any] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)  # the name of each field's
    left: dict[str, str] = field(default_factory=dict)  # of members that are no field of it, by ending
    wrong: str | None = None

    @property
    def whole(self) -> bool:
        return {"image", "caption"} <= self.fields.keys()


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
            yield number, _row(pair)


def _pairs(shard: tarfile.TarFile) -> Iterator[_Pair]:
    """Members put together. Raises what tarfile raises, after the pairs before that."""
    pair: _Pair | None = None
    done = set[int]()  # hashes of keys
    for member in shard:
        shard.members = []  # type: ignore[attr-defined]  # a stream goes back to none of them
        folder, _, name = member.name.rpartition("/")
        stem, dot, kind = name.partition(".")
        if not (member.isfile() or member.issym() or member.islnk()) or not stem or not dot:
            continue
        stem, kind = f"{folder}/{stem}" if folder else stem, kind.lower()
        following = _following(pair, stem, kind, member.name, done)
        if following is not pair and pair is not None:
            done.add(hash(pair.key))
            yield pair
        pair = following
        _add(pair, kind, member, shard)
    if pair is not None:
        yield pair


def _following(pair: _Pair | None, stem: str, kind: str, name: str, done: set[int]) -> _Pair:
    """The pair that the next member belongs to: the one that is open, or a new one."""
    _, dot, last = kind.rpartition(".")
    dotted = bool(dot) and _field(last) is not None
    key = f"{stem}.{name.rpartition('/')[2][len(stem.rpartition('/')[2]) + 1 :].rpartition('.')[0]}"
    if pair is not None and pair.stem == stem:
        if not pair.dotted:
            again = pair.members.get(_field(kind) or "", "").rpartition("/")[2] == name.rpartition("/")[2]
            return _again(stem, stem, name) if again else pair
        if dotted and pair.key == key:
            return _again(key, stem, name) if pair.members.get(_field(last) or "") == name else pair
        if not dotted and not pair.whole:  # a.depth.png in front of a.jpg: it is a member of that
            pair.key, pair.dotted = stem, False
            pair.left |= {member.rpartition(".")[2]: member for member in pair.members.values()}
            pair.fields, pair.members = {}, {}
            return pair
    made = _Pair(key, stem, True) if dotted else _Pair(stem, stem, False)
    if hash(made.key) in done:
        made.wrong = (
            f"{name} is apart from the members of {made.key} before: those of a pair stand one after another "
            "(tar --sort=name writes them so)"
        )
    return made


def _again(key: str, stem: str, name: str) -> _Pair:
    why = f"{name}: the pair {key} has such a member already; names in a shard must differ"
    return _Pair(key, stem, key != stem, wrong=why)


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


def _field(kind: str) -> str | None:
    """The field of a member, by the end of its name."""
    return (
        "image" if kind in _PICTURES else "caption" if kind in _TEXTS else "json" if kind == "json" else None
    )


def _add(pair: _Pair, kind: str, member: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """What a member adds to its pair; `wrong` where it cannot be used."""
    name = _field(kind.rpartition(".")[2] if pair.dotted else kind)
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


def _read(pair: _Pair, name: str, member: str, data: bytes) -> None:
    try:
        pair.fields[name] = (
            data if name == "image" else data.decode() if name == "caption" else json.loads(data)
        )
    except (ValueError, RecursionError) as fault:
        pair.wrong = f"{member} cannot be read: {str(fault).splitlines()[0]}"


def _row(pair: _Pair) -> Any:
    if pair.wrong:
        return BadRecord(pair.wrong)
    fields = pair.fields.pop("json", {})
    if not isinstance(fields, dict):
        return BadRecord(f"{pair.key}.json is not a JSON object")
    row = {**fields, "key": pair.key, **pair.fields}
    if any(isinstance(row.get(name), (str, list)) and row[name] for name in TEXTS):
        return row | {f".{kind}": member for kind, member in pair.left.items()}
    if beside := next(
        (m for kind, m in pair.left.items() if _field(kind.rpartition(".")[2]) == "caption"), None
    ):
        return BadRecord(
            f"{beside} belongs to no pair: members are paired by the name up to its first dot, "
            f"{pair.stem.rpartition('/')[2]}, and the caption of that is called {pair.stem}.txt"
        )
    if "image" in pair.members:
        return BadRecord(f"the text is empty: {pair.members['image']} has no {pair.key}.txt behind it")
    return row
