"""Pairs of a tar shard: which members belong together, and what a pair's row is.

Members are a pair if their names are equal up to the first dot of their last part: 000000123.jpg,
000000123.txt, 000000123.json. Where no such member is there, names with dots are pairs up to their last one:
photo.2021.jpg, photo.2021.txt. They should stand one after another; a pair that lacks its picture or caption
waits for them, as long as there is room. Knows nothing of tar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gemel_ray.readers import bounds
from gemel_ray.readers.fields import BadRecord, short
from gemel_ray.readers.names import TEXTS

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
        while self.size > bounds.APART or len(self.waiting) > bounds.PAIRS:
            first = next(iter(self.waiting.values()))
            first.late = f"within the {bounds.PAIRS:,} pairs and {bounds.APART:,} bytes after it"
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
