"""The input of an output folder: each file once, and known by the same key wherever it was moved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from gemel_ray.job.identity import file_key, place
from gemel_ray.object_folder import Place, folder_at

_HEAD = 2**16
_NOTE = "inputs.json"
Notes = dict[str, dict[str, Any]]  # by place: key, address, size, and a digest of the first bytes


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

    def note(self) -> None:
        folder_at(self.output).write(_NOTE, json.dumps(self.known, indent=1).encode())


def addresses(output: Place) -> dict[int, str]:
    """Where the file of each key was last."""
    return {said["key"]: said["address"] for said in _noted(output).values()}


def _noted(output: Place) -> Notes:
    try:
        known: Notes = json.loads(folder_at(output).read(_NOTE))
    except FileNotFoundError:
        return {}
    return known


def _with(known: Notes, given: Mapping[str, str]) -> Notes:
    for at, address in given.items():
        now = _look(address)
        if at not in known:
            former = _moved(known, now, given)
            known[at] = {"key": known.pop(former)["key"] if former else file_key(address)}
        known[at] |= {"address": address, **now}
    return known


def _moved(known: Notes, now: Mapping[str, Any], given: Collection[str]) -> str | None:
    """Where a file that is new here was before, if it is there no more."""
    for at, said in known.items():
        same = now and all(said.get(name) == now[name] for name in ("bytes", "head"))
        if same and at not in given and not _look(said["address"]):
            return at
    return None


def _look(address: str) -> dict[str, Any]:
    """Size, and a digest of the first bytes; nothing where it cannot be read, which its rows will say."""
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        size = int(filesystem.size(path))
        with filesystem.open(path, "rb") as file:
            head = hashlib.blake2b(file.read(_HEAD), digest_size=16).hexdigest()
    except Exception:  # every store has its own errors
        return {}
    return {"bytes": size, "head": head}
