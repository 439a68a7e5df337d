"""Tar shards of image-caption pairs (WebDataset, and what img2dataset writes): one row per pair.

Names say which members belong together. A member that comes twice, or too far from its pair, is a separate
error row. A shard is read as a stream, and nothing is ever extracted: a link, which leads to a member that
has passed, is its pair's error; devices are skipped.
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
from gemel_ray.records import Row

# Pairs of a tar shard: which members belong together, and what a pair's row is.
#
# Members are a pair if their names are equal up to the first dot of their last part: 000000123.jpg,
# 000000123.txt, 000000123.json. Where there is no such member, names with dots are compared up to their last
# one: photo.2021.jpg, photo.2021.txt. Members should be adjacent; a pair that lacks its picture or caption
# waits for them, as long as there is room. Knows nothing of tar.


_PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif",
             "svg", "ico", "jp2", "img", "image")  # fmt: skip
_TEXTS = ("txt", "text", "caption", "cap")


@dataclass
class Pair:
    """Members so far: those of `stem`, the name up to the first dot, or, if `dotted`, up to the last."""

    key: str
    stem: str
    dotted: bool
    fields: Row = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)  # the name of each field's member
    left: dict[str, str] = field(default_factory=dict)  # names of members that are not a field, by ending
    size: int = 0  # bytes of its members
    wrong: str | None = None
    late: str | None = None  # why it waits no longer for what it lacks

    @property
    def whole(self) -> bool:
        """Whether it has a picture, and a caption or a JSON with one."""
        return "image" in self.fields and ("caption" in self.fields or _has_text(self.fields.get("json")))

    def lacks(self, name: str) -> bool:
        return name not in self.members.values()


class WaitingPairs:
    """Pairs that lack a member, which may follow later in the shard, within a limit of bytes and pairs. Once
    one did, pairs that lack only their JSON wait for it, too."""

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
            if not dotted and not pair.whole:  # a.depth.png before a.jpg: it belongs to that pair
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
        """The pairs that are done now that another one begins."""
        wanted = {"image", "caption", "json"} - pair.fields.keys() if self.scattered else ()
        if pair.wrong or (pair.whole and not wanted):
            yield self._ended(pair)
            return
        self.waiting[pair.key] = pair
        self.size += pair.size
        while self.size > opening.WAITING_BYTES or len(self.waiting) > opening.WAITING_PAIRS:
            first = next(iter(self.waiting.values()))
            first.late = (
                f"within the {opening.WAITING_PAIRS:,} pairs and {opening.WAITING_BYTES:,} bytes after it"
            )
            yield self._ended(self._without(first))

    def rest(self) -> Iterator[Pair]:
        """The pairs that are still waiting at the end."""
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
    """The field of a member, by its ending."""
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
_LARGEST = 64 * 2**20  # bytes of a member that is read: a header may claim anything
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
    # tarfile unpacks all but zstd, and reports a stream that is cut short.
    with opened(address) if address.lower().endswith(".zst") else fsspec.open(address, "rb") as file:
        source: Any = file
        # `file` is closed here; the TarFile needs no closing.
        shard = tarfile.open(fileobj=source, mode="r|*", tarinfo=_Member)  # noqa: SIM115
        for pair in _pairs(shard):
            number += 1
            yield number, row_of(pair)


def _pairs(shard: tarfile.TarFile) -> Iterator[Pair]:
    """Members joined to pairs. Raises tarfile's errors, after the pairs before the fault."""
    pair: Pair | None = None
    apart = WaitingPairs()
    try:
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # a stream never goes back to them
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
    """A member of a stream that must end in a block of zeros. tarfile alone takes a damaged or missing header
    for the end, and would silently lose the rest. It also reads a long header of any claimed length."""

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
    """Add a member to its pair; set `wrong` if it cannot be used."""
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
