"""The input files of an output folder: each file once, with a key that it keeps when it is moved.

A file that a run has read to its end and that has not changed since is not read again. Its stamp shows that:
on a disk its size, times and inode, in an object store its size and ETag.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import fsspec

from gemel_ray.job.selection import Done, file_key, place
from gemel_ray.settings import Input
from gemel_ray.storage import Place, folder_at

_NOTE = "inputs.json"
_HEAD = 2**16  # bytes
_AT_ONCE = 32  # files that are inspected
_YOUNG = 2.0  # seconds: a file this new may be written again with the same stamp
# By place: key, address, size, stamp, a digest of the first bytes; `whole`, once a run has read it to its
# end: its stamp then, its number of documents, and what read them.
Notes = dict[str, dict[str, Any]]


def absolute(address: str) -> str:
    """The address, valid from any folder."""
    return address if "://" in address else str(Path(address).absolute())


@dataclass(frozen=True)
class InputFiles:
    """A run's input: `addresses` of its files, and what is `known` of these and of earlier runs' files."""

    output: Place
    addresses: list[str]
    known: Notes

    @classmethod
    def of(cls, inputs: Sequence[str], output: Place) -> InputFiles:
        """Take each file once, though links, .. and patterns may lead to it twice. A file that was moved
        since an earlier run, by its size and first bytes, keeps its key."""
        first: dict[str, str] = {}
        for address in map(absolute, inputs):
            first.setdefault(place(address), address)
        return cls(output, list(first.values()), _updated(_saved(output), first))

    @property
    def keys(self) -> Mapping[str, int]:
        """By address."""
        return {address: self.known[place(address)]["key"] for address in self.addresses}

    def unchanged(self, options: Input) -> dict[str, int]:
        """Like the function, but with the stamps this was made with: no file is inspected again."""
        found = {address: self.known[place(address)] for address in self.addresses}
        return _same_stamp(found, {address: note["stamp"] for address, note in found.items()}, options)

    def save(self) -> None:
        folder_at(self.output).write(_NOTE, json.dumps(self.known, indent=1).encode())

    def mark_finished(self, done: Done, options: Input) -> None:
        """After a run that ended well: save which files it has read to their end, with the stamps from
        before it read them."""
        numbers = done.whole()
        for note in self.known.values():
            if note.get("stamp") and note["key"] in numbers:
                read = {"documents": numbers[note["key"]], "reader": _reader(options)}
                note["whole"] = {"stamp": note["stamp"], **read}
        self.save()


def head(file: IO[bytes]) -> str:
    """A digest of an open file's first bytes."""
    return hashlib.blake2b(file.read(_HEAD), digest_size=16).hexdigest()


def addresses(output: Place) -> dict[int, str]:
    """Where the file of each key was last."""
    return {note["key"]: note["address"] for note in _saved(output).values()}


def unchanged(output: Place, inputs: Sequence[str], options: Input) -> dict[str, int]:
    """By address: numbers of documents of files that a run has read to their end, unchanged since."""
    known = _saved(output)
    notes = {address: known.get(place(absolute(address)), {}) for address in inputs}
    found = {address: note for address, note in notes.items() if "whole" in note}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        stamps = dict(zip(found, threads.map(_stamp, found), strict=True))
    return _same_stamp(found, stamps, options)


def _same_stamp(notes: Notes, stamps: Mapping[str, str | None], options: Input) -> dict[str, int]:
    """By address: numbers of documents of files that have the stamp they had when a run read them."""
    wholes = {address: note["whole"] for address, note in notes.items() if "whole" in note}
    return {
        address: whole["documents"]
        for address, whole in wholes.items()
        if whole["stamp"] == stamps[address] and whole["reader"] == _reader(options)
    }


def _reader(options: Input) -> str:
    """What decides a file's documents, besides the file."""
    return f"{version('gemel-ray')}{' fetch_official_images' * options.fetch_official_images}"


def _saved(output: Place) -> Notes:
    try:
        known: Notes = json.loads(folder_at(output).read(_NOTE))
    except FileNotFoundError:
        return {}
    return known


def _updated(known: Notes, inputs: Mapping[str, str]) -> Notes:
    """The notes with these input files, addresses by place, as they are now."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = list(threads.map(lambda at: _inspected(inputs[at], known.get(at, {})), inputs))
    for (at, address), now in zip(inputs.items(), found, strict=True):
        if at not in known:
            former = _moved_from(known, now, inputs)
            known[at] = {"key": known.pop(former)["key"] if former else file_key(address)}
        known[at] |= {"address": address, "stamp": None, **now}  # None: it cannot be read now
    return known


def _moved_from(known: Notes, now: Mapping[str, Any], inputs: Collection[str]) -> str | None:
    """The former place of a new file, if an equal file has gone from there."""
    for at, note in known.items():
        same = now and all(note.get(name) == now[name] for name in ("bytes", "head"))
        if same and at not in inputs and not _inspected(note["address"]):
            return at
    return None


def _inspected(address: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Size, stamp, and a digest of the first bytes, which are not read where the stamp is as `before`. Empty
    where the file cannot be read; its error row reports that."""
    stamp = _stamp(address)
    if before and stamp and before.get("stamp") == stamp:
        return {name: before[name] for name in ("bytes", "head", "stamp")}
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        size = int(filesystem.size(path))
        with filesystem.open(path, "rb") as file:
            first = head(file)
    except Exception:  # stores have different errors
        return {}
    return {"bytes": size, "head": first, "stamp": stamp}


def _stamp(address: str) -> str | None:
    """A string that changes with the file; None where there is none to rely on."""
    try:
        if "://" in address.removeprefix("file://"):
            filesystem, path = fsspec.core.url_to_fs(address)
            about = filesystem.info(path)
            tag = about.get("ETag") or about.get("etag")
            return f"{about['size']} {tag}" if tag else None
        found = os.stat(address.removeprefix("file://"))
    except Exception:  # as above
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < _YOUNG:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
