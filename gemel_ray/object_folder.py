"""A `Folder` (storage.py) in an object store: a PUT is one step and lasts, and a PUT on condition that there
is no such object is what two writers agree by. S3, Google's and Azure's stores have it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gemel_ray.storage import TORN, Folder, LocalFolder
from gemel_ray.stores import StoreError, opened, plainly, scheme

Place = str | Path | Folder  # an address, a path of this machine, or what either has become


@dataclass(frozen=True)
class ObjectFolder:
    """What lies under one address."""

    address: str

    def __str__(self) -> str:
        return self.address

    def read(self, name: str) -> bytes:
        with self._at(name) as (store, path):
            return bytes(store.cat_file(path))

    def open(self, name: str) -> BinaryIO:
        with self._at(name) as (store, path):
            file: BinaryIO = store.open(path, "rb")
            return file

    def write(self, name: str, data: bytes) -> None:
        with self._at(name) as (store, path):
            store.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            with self._at(name) as (store, path):
                store.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self.read(name) == data  # ours all the same, when only the answer was lost
        return True

    def names(self, under: str = "") -> list[str]:
        with suppress(FileNotFoundError), self._at(under) as (store, path):
            files = [f["name"].rpartition("/")[2] for f in store.ls(path, detail=True) if f["type"] == "file"]
            return sorted(f"{under}/{n}" if under else n for n in files if n and not n.startswith("."))
        return []

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._at(name) as (store, path):
            store.rm_file(path)

    def set_aside(self, name: str) -> str:
        folder, _, _ = name.rpartition("/")
        number = sum(other.startswith(f"{name}.") and other.endswith(TORN) for other in self.names(folder))
        torn = f"{name}.{number}{TORN}"
        self.write(torn, self.read(name))
        self.remove(name)
        return torn

    def folders(self, under: str) -> list[str]:
        with suppress(FileNotFoundError), self._at(under) as (store, path):
            found = [f["name"].rstrip("/") for f in store.ls(path, detail=True) if f["type"] == "directory"]
            return sorted(f"{under}/{name.rpartition('/')[2]}" for name in found)
        return []

    def clear(self, under: str) -> None:
        with suppress(FileNotFoundError), self._at(under) as (store, path):
            store.rm(path, recursive=True)

    def tidy(self, under: str) -> None:
        """An object is whole or not there."""

    @contextmanager
    def _at(self, name: str) -> Iterator[tuple[Any, str]]:
        """The store and the object's path; what its client raises inside is an OSError."""
        store, path = opened(self.address)
        with plainly(f"{self.address}/{name}", (FileNotFoundError, FileExistsError)):
            yield store, f"{path.rstrip('/')}/{name}".rstrip("/")


def keeps_writers_apart(place: Place) -> None:
    """Raise StoreError for a store that lets this process not write, or two writers create one object."""
    at, name = folder_at(place), f".{uuid.uuid4().hex}"
    if not isinstance(at, ObjectFolder):
        return
    both = at.create(name, b"first") and at.create(name, b"second")
    at.remove(name)
    if both:
        raise StoreError(
            f"{at}: its store pays no heed to If-None-Match, so that two runs could write over each other: "
            "it can take no output"
        )


def folder_at(place: Place) -> Folder:
    """The folder at a path of this machine, or at an address."""
    if not isinstance(place, str | Path):
        return place
    return ObjectFolder(str(place).rstrip("/")) if scheme(place) else LocalFolder(Path(place).absolute())
