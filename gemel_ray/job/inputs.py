"""The input of an output folder: each file once, and known by the same key wherever it was moved.

A file that a run has been through, and that is as it was then, is not read again: its stamp says so, which on
a disk is its size, times and inode, and in an object store its size and ETag.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec

from gemel_ray.job.index import Done, file_key, head, place
from gemel_ray.settings import Input
from gemel_ray.storage import Place, folder_at

_NOTE = "inputs.json"
_AT_ONCE = 32  # files that are looked at
_YOUNG = 2.0  # seconds: a file written so lately may be written again with the same stamp
# By place: key, address, size, stamp, a digest of the first bytes; `whole`, once a run has been through it:
# its stamp then, its documents, and what read them.
Notes = dict[str, dict[str, Any]]


def absolute(address: str) -> str:
    """The address as it is known from any folder."""
    return address if "://" in address else str(Path(address).absolute())


@dataclass(frozen=True)
class Given:
    """A run's input: `addresses` of its files, and what is `known` of these and of those that earlier runs
    had."""

    output: Place
    addresses: list[str]
    known: Notes

    @classmethod
    def of(cls, inputs: Sequence[str], output: Place) -> Given:
        """Links, .. and patterns may lead to one file twice: it is taken once. One that was moved since an
        earlier run, as its size and first bytes say, keeps its key."""
        first: dict[str, str] = {}
        for address in map(absolute, inputs):
            first.setdefault(place(address), address)
        return cls(output, list(first.values()), _with(_noted(output), first))

    @property
    def keys(self) -> Mapping[str, int]:
        """By address."""
        return {address: self.known[place(address)]["key"] for address in self.addresses}

    def unchanged(self, asked: Input) -> dict[str, int]:
        """As the function, by what was seen when this was made: nothing is looked at again."""
        found = {address: self.known[place(address)] for address in self.addresses}
        return _as_they_were(found, {address: said["stamp"] for address, said in found.items()}, asked)

    def note(self) -> None:
        folder_at(self.output).write(_NOTE, json.dumps(self.known, indent=1).encode())

    def finished(self, done: Done, asked: Input) -> None:
        """The run has ended well: note which files it has been through, as they were before it read them."""
        numbers = done.whole()
        for said in self.known.values():
            if said.get("stamp") and said["key"] in numbers:
                read = {"documents": numbers[said["key"]], "reader": _reader(asked)}
                said["whole"] = {"stamp": said["stamp"], **read}
        self.note()


def addresses(output: Place) -> dict[int, str]:
    """Where the file of each key was last."""
    return {said["key"]: said["address"] for said in _noted(output).values()}


def unchanged(output: Place, inputs: Sequence[str], asked: Input) -> dict[str, int]:
    """Of the files that a run has been through and that are as they were then: their numbers of documents."""
    known = _noted(output)
    noted = {address: known.get(place(absolute(address)), {}) for address in inputs}
    found = {address: said for address, said in noted.items() if "whole" in said}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        stamps = dict(zip(found, threads.map(_stamp, found), strict=True))
    return _as_they_were(found, stamps, asked)


def _as_they_were(noted: Notes, stamps: Mapping[str, str | None], asked: Input) -> dict[str, int]:
    """By address: the documents of files whose stamps are those of when a run went through them."""
    wholes = {address: said["whole"] for address, said in noted.items() if "whole" in said}
    return {
        address: whole["documents"]
        for address, whole in wholes.items()
        if whole["stamp"] == stamps[address] and whole["reader"] == _reader(asked)
    }


def _reader(asked: Input) -> str:
    """What else than the file decides what its documents are."""
    return f"{version('gemel-ray')}{' fetch_official_images' * asked.fetch_official_images}"


def _noted(output: Place) -> Notes:
    try:
        known: Notes = json.loads(folder_at(output).read(_NOTE))
    except FileNotFoundError:
        return {}
    return known


def _with(known: Notes, given: Mapping[str, str]) -> Notes:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        looks = list(threads.map(lambda at: _look(given[at], known.get(at, {})), given))
    for (at, address), now in zip(given.items(), looks, strict=True):
        if at not in known:
            former = _moved(known, now, given)
            known[at] = {"key": known.pop(former)["key"] if former else file_key(address)}
        known[at] |= {"address": address, "stamp": None, **now}  # None: it cannot be read now
    return known


def _moved(known: Notes, now: Mapping[str, Any], given: Collection[str]) -> str | None:
    """Where a file that is new here was before, if it is there no more."""
    for at, said in known.items():
        same = now and all(said.get(name) == now[name] for name in ("bytes", "head"))
        if same and at not in given and not _look(said["address"]):
            return at
    return None


def _look(address: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Size, stamp, and a digest of the first bytes, which are not read where the stamp is as `before`;
    nothing where it cannot be read, which its rows will say."""
    stamp = _stamp(address)
    if before and stamp and before.get("stamp") == stamp:
        return {name: before[name] for name in ("bytes", "head", "stamp")}
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        size = int(filesystem.size(path))
        with filesystem.open(path, "rb") as file:
            first = head(file)
    except Exception:  # every store has its own errors
        return {}
    return {"bytes": size, "head": first, "stamp": stamp}


def _stamp(address: str) -> str | None:
    """What differs once the file is another; None where that cannot be told."""
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
