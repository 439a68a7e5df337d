"""One pass over the training data, if there is any, and one over the documents to be checked."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gemel_ray.checking.findings import Findings
from gemel_ray.errors import Mistake
from gemel_ray.knowledge import entity_files
from gemel_ray.knowledge.entities import Targets
from gemel_ray.pictures.images import FORMATS, image_bytes, read_image
from gemel_ray.pictures.limits import ImageError
from gemel_ray.readers import documents
from gemel_ray.readers.fields import NIL, short
from gemel_ray.readers.pictures import spellings, unread_counts
from gemel_ray.records import Row

Say = Callable[[str], None]
_LONG_NAME = 500  # characters: some 250 tokens
_LONG_TEXT = 12_000  # some 4,000 tokens
_EVERY = 5.0  # seconds between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What the documents are checked against."""

    train: Sequence[str] = ()  # files of training documents
    entities: str | None = None  # the knowledge base's file
    images: Path | None = None  # the pictures' folder


@dataclass
class _Known:
    """What occurred before, and where."""

    ids: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    mentions: dict[tuple[str, str], str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # by key and by digest


def check(files: Sequence[str], scope: Scope, say: Say) -> Findings:
    """What is wrong with the documents of `files`. Raises ValueError if the folder of pictures does not
    exist, OSError if the file of entities does not."""
    found = Findings()
    folder = Folder(scope.images) if scope.images else None
    targets = _targets(scope.entities, found) if scope.entities else None
    train = _train(scope.train, folder, say)
    known, reader = _Known(), Reader(decode=True)
    for where, row, seen in _rows(files, folder, reader, say, found.fields):
        _document(row, where, known, train, found)
        for mention in row["given"] or []:
            found.mentions += 1
            _mention(row, mention, where, targets, found)
            _repetition(row, mention, where, known, train, found)
        _picture(row, seen, where, train, found, named=folder is not None)
    found.pictures = len(reader.known) + found.pictures
    for picture in folder.unused.values() if folder else ():
        found.add("unused", str(picture), "no document uses it")
    return found


def _targets(address: str, found: Findings) -> Targets:
    """The names of the knowledge base; faults of its entities are added to `found`."""

    def rejected(message: str) -> None:
        where, _, reason = message.partition(": ")
        found.add("entity", where, reason)

    names: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for row in entity_files.read(address, rejected):
        where = f"{address}:{row['line']}"
        if (first := names.setdefault(row["id"], row["name"])) is not row["name"]:
            reason = f"the id {short(row['id'])} of {short(row['name'])} is that of {short(first)}"
            found.add("same_entity", where, reason)
        if len(row["name"]) > _LONG_NAME:
            reason = f"the name {short(row['name'])} has {len(row['name']):,} characters"
            found.add("long_name", where, reason)
        pairs.append((row["id"], row["name"]))
    return Targets(pairs)


def _train(files: Sequence[str], folder: Folder | None, say: Say) -> _Known:
    known = _Known()
    for where, row, seen in _rows(files, folder, Reader(decode=False), say):
        if row["error"]:
            continue
        known.texts.setdefault(row["text"], where)
        for mention in row["given"] or []:
            known.mentions.setdefault((row["text"], mention["mention_id"]), where)
        for name in _names(row, seen):
            known.images.setdefault(name, where)
    return known


def _rows(
    files: Sequence[str], folder: Folder | None, reader: Reader, say: Say, fields: Counter[str] | None = None
) -> Iterator[tuple[str, Row, Seen | None]]:
    """The documents: where, the row, and the result of reading its picture (None: there is none). `fields`
    counts the fields that no form reads."""
    done, reported = 0, time.monotonic()
    for file in files:
        for table in documents(file):
            rows = table.to_pylist()
            for row in rows:
                if folder and row["image_key"] and not row["image_address"]:
                    row["image_address"] = folder.find(row["image_key"])
                if folder and row["image_address"]:
                    folder.use(row["image_address"])
            seen = {id(row): what for row, what in reader.read(rows)}
            if fields is not None:
                fields.update(unread_counts(table)["unread"])
            yield from ((_where(file, row), row, seen.get(id(row))) for row in rows)
            done += len(rows)
            if time.monotonic() - reported > _EVERY:
                say(f"{file}: {done:,} documents, {len(reader.known):,} pictures")
                reported = time.monotonic()


def _where(file: str, row: Row) -> str:
    """The file and the row's id; a row without an id has the file's name and the line as its id."""
    name = PurePosixPath(file).name
    identifier: str = row["document_id"]
    return (
        file + identifier.removeprefix(name) if identifier.startswith(f"{name}:") else f"{file}: {identifier}"
    )


def _document(row: Row, where: str, known: _Known, train: _Known, found: Findings) -> None:
    found.documents += 1
    if row["error"]:
        found.add("row", where, row["error"])
        return
    if field := row["unread_picture"]:
        found.add("unread", where, f"the field {field!r:.60} looks like a picture and is not read")
    if (first := known.ids.setdefault(row["document_id"], where)) is not where:
        found.add("id", where, f"the id is also that of {first}")
    if len(row["text"]) > _LONG_TEXT:
        found.add("long_text", where, f"the text has {len(row['text']):,} characters")
    if other := train.texts.get(row["text"]):
        found.add("train_text", where, f"the text is that of {other}")


def _mention(row: Row, mention: Row, where: str, targets: Targets | None, found: Findings) -> None:
    if mention["error"]:
        found.add("mention", where, mention["error"])
        return
    if mention["start"] is None:
        found.add("unplaced", where, f"{short(mention['mention'])}: {mention['placed']}")
    elif mention["placed"]:
        found.add("placed", where, f"{short(mention['mention'])}: {mention['placed']}")
    target, its_id = mention["target"], mention["target_id"]
    if targets is None or its_id == NIL or (target is None and its_id is None):
        return
    doubts, name = targets.doubts, targets.name(target, its_id)
    if targets.doubts > doubts:
        found.add("doubt", where, f"{short(target)} is a name, and another entity's id: taken as the name")
    if name not in targets:
        found.add("target", where, f"there is no entity {short(target)}" + (f" ({its_id})" if its_id else ""))
    elif target is not None and name != target:
        by_id = f" ({its_id})" if its_id else ""
        found.add("renamed" if its_id else "taken", where, f"{short(target)} is {short(name)}{by_id}")


def _repetition(row: Row, mention: Row, where: str, known: _Known, train: _Known, found: Findings) -> None:
    if mention["error"]:
        return
    key, shown = (row["text"], mention["mention_id"]), f"{mention['mention']!r:.60}"
    if (first := known.mentions.setdefault(key, where)) is not where:
        found.add("duplicate", where, f"{shown} is also in {first}")
    if other := train.mentions.get(key):
        found.add("train_mention", where, f"{shown} is also in {other}")


def _picture(row: Row, seen: Seen | None, where: str, train: _Known, found: Findings, *, named: bool) -> None:
    """`named`: a folder was given, so that a key that is a URL should be there too."""
    key = row["image_key"]
    if seen is None and key and (named or "://" not in key):
        found.add("missing", where, f"there is no {key}")
    if seen and seen.missing:
        found.add("missing", where, seen.missing)
    if seen and seen.corrupt:
        found.add("corrupt", where, seen.corrupt)
    found.pictures += row["image"] is not None
    if other := next((train.images[n] for n in _names(row, seen) if n in train.images), None):
        found.add("train_image", where, f"the picture is that of {other}")


def _names(row: Row, seen: Seen | None) -> list[str]:
    """The names by which a picture is recognised."""
    return [name for name in (row["image_key"], seen.digest if seen else None) if name]


# A data set's pictures: present, decodable, used, and not those of the training data.
#
# Each is read once, in threads. Knows nothing of texts.


_ENDINGS = {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".tif",
    ".svg",
    ".heic",
    ".heif",
    *(f".{name.lower()}" for name in FORMATS),
}
_THREADS = 8
_LONGEST = 300  # characters of a reason
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Seen:
    """The result of reading a picture: the digest of its content, or why there is none."""

    digest: str | None = None
    missing: str | None = None
    corrupt: str | None = None


class Folder:
    """The pictures under a folder, by name. Raises ValueError if it is not a folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise Mistake(f"{folder} is not a folder of pictures")
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
        self.folder, self.unused = folder, {str(p.resolve()): p for p in inside}
        self._of: dict[str, Path] = {p.name: p for p in inside}
        self._of |= {str(p.relative_to(folder)): p for p in inside}

    def find(self, key: str) -> str | None:
        """The address of the picture with this key, as releases spell it; for a URL by its last part."""
        names = spellings(unquote(PurePosixPath(key).name)) if "://" in key else []
        found = next((self._of[n] for n in [*spellings(key), *names] if n in self._of), None)
        return str(found) if found else None

    def use(self, address: str) -> None:
        """Mark a picture as used by a document."""
        if self.unused and "://" not in address and len(address) < _LONGEST_PATH:
            self.unused.pop(str(Path(address).resolve()), None)


class Reader:
    """Reads pictures, each address once."""

    def __init__(self, *, decode: bool) -> None:
        self.decode = decode
        self.known: dict[str, Seen] = {}

    def read(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Seen]]:
        """The rows that have a picture (`image` or `image_address`), each with the result of reading it."""
        have = [r for r in rows if r["image"] is not None or r["image_address"]]
        new = dict.fromkeys(
            r["image_address"] for r in have if r["image"] is None and r["image_address"] not in self.known
        )
        with ThreadPoolExecutor(_THREADS) as pool:
            self.known.update(zip(new, pool.map(lambda address: self._look(None, address), new), strict=True))
            carried = pool.map(lambda r: None if r["image"] is None else self._look(r["image"], None), have)
            for row, seen in zip(have, carried, strict=True):
                yield row, seen or self.known[row["image_address"]]

    def _look(self, data: bytes | None, address: str | None) -> Seen:
        try:
            if data is None and address and "://" not in address and not Path(address).exists():
                return Seen(missing=f"there is no {_cut_short(address)}")
            data = image_bytes(data, address)
            if self.decode:
                read_image(data, address)
        except (
            ImageError,
            OSError,
            ValueError,
        ) as fault:  # a path may be anything: too long, or bytes
            return Seen(corrupt=_cut_short(str(fault)))
        return Seen(hashlib.blake2b(data, digest_size=16).hexdigest())


def _cut_short(reason: str) -> str:
    """The reason, shortened: it may quote a whole picture."""
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
