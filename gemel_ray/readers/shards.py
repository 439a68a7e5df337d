"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): a pair a row.

What belongs together is told by the names. A member that comes a second time, or too far from its
pair, is a row of its own that says so. A shard is read as a stream, and nothing is ever extracted: a link in
it, which leads to a member that is gone by, is its pair's error; devices are passed over.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import fsspec

from gemel_ray.readers import opening
from gemel_ray.readers.fields import TEXTS, BadRecord, not_json, short
from gemel_ray.readers.opening import is_from_storage, opened

# Pairs of a tar shard: which members belong together, and what a pair's row is.
#
# Members are a pair if their names are equal up to the first dot of their last part: 000000123.jpg,
# 000000123.txt, 000000123.json. Where no such member is there, names with dots are pairs up to their last
# one: photo.2021.jpg, photo.2021.txt. They should stand one after another; a pair that lacks its picture or
# caption waits for them, as long as there is room. Knows nothing of tar.


_PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif",
             "svg", "ico", "jp2", "img", "image")  # fmt: skip
_TEXTS = ("txt", "text", "caption", "cap")


@dataclass
class Pair:
    """Members so far: of `stem`, the name up to the first dot, or with `dotted` of that up to the last."""

    key: str
    stem: str
    dotted: bool
    fields: dict[str, Any] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)  # the name of each field's
    left: dict[str, str] = field(default_factory=dict)  # of members that are no field of it, by ending
    size: int = 0  # bytes of its members
    wrong: str | None = None
    late: str | None = None  # why what it lacks is not waited for any longer

    @property
    def whole(self) -> bool:
        """With a picture, and a caption or a JSON with one."""
        return "image" in self.fields and ("caption" in self.fields or _has_text(self.fields.get("json")))

    def lacks(self, name: str) -> bool:
        return name not in self.members.values()


class Apart:
    """Pairs that lack something, which may stand further on in the shard: within so many bytes and pairs.
    In a shard in which this was so once, those that lack only their JSON wait for it, too."""

    def __init__(self) -> None:
        self.waiting: dict[str, Pair] = {}
        self.done = set[int]()  # hashes of keys
        self.size, self.scattered = 0, False

    def following(self, pair: Pair | None, stem: str, name: str) -> Pair:
        """The pair that the next member belongs to: the one that is open, one that waits, or a new one."""
        inner = name.rpartition("/")[2][len(stem.rpartition("/")[2]) + 1 :]
        before, dot, last = inner.rpartition(".")
        dotted = bool(dot) and kind_of(last.lower()) is not None
        key = f"{stem}.{before}" if dotted else stem
        if pair is not None and pair.stem == stem:
            if not pair.dotted or (dotted and pair.key == key):
                return pair if pair.lacks(name) else _again(pair.key, stem, name)
            if not dotted and not pair.whole:  # a.depth.png in front of a.jpg: it is a member of that
                pair.key, pair.dotted = stem, False
                pair.left |= {member.rpartition(".")[2]: member for member in pair.members.values()}
                pair.fields, pair.members = {}, {}
                return pair
        if former := self.waiting.get(stem) or self.waiting.get(key):
            return self._resumed(former) if former.lacks(name) else _again(former.key, stem, name)
        made = Pair(key, stem, dotted)
        if hash(key) in self.done:
            made.wrong = (
                f"{name} is apart from the members of {key} before, and too far from them: those of a pair "
                "stand one after another (tar --sort=name writes them so)"
            )
        return made

    def put(self, pair: Pair) -> Iterator[Pair]:
        """Those that are done now that another pair begins."""
        wanted = {"image", "caption", "json"} - pair.fields.keys() if self.scattered else ()
        if pair.wrong or (pair.whole and not wanted):
            yield self._ended(pair)
            return
        self.waiting[pair.key] = pair
        self.size += pair.size
        while self.size > opening.APART or len(self.waiting) > opening.PAIRS:
            first = next(iter(self.waiting.values()))
            first.late = f"within the {opening.PAIRS:,} pairs and {opening.APART:,} bytes after it"
            yield self._ended(self._without(first))

    def rest(self) -> Iterator[Pair]:
        """Those that waited in vain."""
        yield from self.waiting.values()
        self.waiting = {}

    def _resumed(self, pair: Pair) -> Pair:
        self.scattered = True
        return self._without(pair)

    def _without(self, pair: Pair) -> Pair:
        self.size -= pair.size
        return self.waiting.pop(pair.key)

    def _ended(self, pair: Pair) -> Pair:
        self.done.add(hash(pair.key))
        return pair


def kind_of(ending: str) -> str | None:
    """The field of a member, by the end of its name."""
    if ending in _PICTURES:
        return "image"
    return "caption" if ending in _TEXTS else "json" if ending == "json" else None


def row_of(pair: Pair) -> Any:
    """The pair as a row: the fields of its JSON with `key`, `caption` and `image`."""
    if pair.wrong:
        return BadRecord(pair.wrong)
    fields = pair.fields.pop("json", {})
    if not isinstance(fields, dict):
        return BadRecord(f"{pair.key}.json is not a JSON object: {short(fields)}")
    row = {**fields, "key": pair.key, **pair.fields}
    if _has_text(row):
        return row | {f".{kind}": member for kind, member in pair.left.items()}
    if beside := next(
        (m for kind, m in pair.left.items() if kind_of(kind.rpartition(".")[2]) == "caption"), None
    ):
        return BadRecord(
            f"{beside} belongs to no pair: members are paired by the name up to its first dot, "
            f"{pair.stem.rpartition('/')[2]}, and the caption of that is called {pair.stem}.txt"
        )
    if "image" in pair.members:
        where = f" {pair.late}: write the shard with tar --sort=name" if pair.late else ""
        return BadRecord(f"the text is empty: {pair.members['image']} has no {pair.key}.txt after it{where}")
    return row


def _has_text(row: Any) -> bool:
    return isinstance(row, dict) and any(
        isinstance(row.get(name), (str, list)) and row[name] for name in TEXTS
    )


def _again(key: str, stem: str, name: str) -> Pair:
    why = f"{name}: the pair {key} has such a member already; names in a shard must differ"
    return Pair(key, stem, key != stem, wrong=why)


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
