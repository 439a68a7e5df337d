"""Writing that survives kills and power cuts: a file or folder is complete, or does not exist.

    write(path, text)                   a file, new or replaced
    with replacing(path) as aside: ...  the same, for a library that writes to a path itself
    create(path, data)                  only if the name is free: of many callers one gets True
    with new_folder(path) as aside: ... a folder; an existing one is removed once the new one is in its place
    set_aside(path)                     renames a torn file

A power cut does not undo what a call has done when it returns: contents are synced before a name refers to
them, and its folder after. Without that, a cut leaves files of 0 bytes. Names that begin with a dot are of
unfinished files.

A `Folder` is a place for named files, on a disk or an object store, with the same guarantees. It does not
rename: `create` is all that two writers need to agree, and object stores have it (a conditional PUT).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gemel_ray.stores import StoreError, opened, scheme, store_errors

TORN = ".torn"  # suffix of a file that was set aside


class Folder(Protocol):
    """Named files of one place. Names are relative, with slashes; folders exist by their files. Failures
    raise OSError; FileNotFoundError if there is no such file."""

    def __str__(self) -> str:
        """Its address, for messages."""

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, with seeking."""

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file, atomically for readers; durable when this returns."""

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, but only if there is no such file. Of concurrent callers on any machines one gets True
        and its content is stored; the others get False."""

    def names(self, under: str = "") -> list[str]:
        """Names of the files in the folder `under`, sorted; none if there is no such folder. Includes
        whatever was written before the call."""

    def remove(self, name: str) -> None:
        """Remove a file; no error if it does not exist. The removal is durable with the next `write` or
        `create` in its folder."""

    def set_aside(self, name: str) -> str:
        """Rename a torn file, so that it is no longer taken for a complete one; return its new name."""

    def folders(self, under: str) -> list[str]:
        """Names of the folders directly in the folder `under`."""

    def clear(self, under: str) -> None:
        """Remove the folder `under` with everything in it."""

    def tidy(self, under: str) -> None:
        """Remove unfinished files of killed writers to the folder `under`."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or of a file system that all nodes share."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        write(self.path / name, data)

    def create(self, name: str, data: bytes) -> bool:
        return create(self.path / name, data)

    def names(self, under: str = "") -> list[str]:
        try:
            with os.scandir(self.path / under) as entries:
                files = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
        except FileNotFoundError:
            return []
        return sorted(f"{under}/{name}" if under else name for name in files)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        return set_aside(self.path / name).relative_to(self.path).as_posix()

    def folders(self, under: str) -> list[str]:
        return sorted(f"{under}/{path.name}" for path in (self.path / under).glob("*") if path.is_dir())

    def clear(self, under: str) -> None:
        shutil.rmtree(self.path / under, ignore_errors=True)

    def tidy(self, under: str) -> None:
        for path in (self.path / under).glob(".*"):
            path.unlink(missing_ok=True)


def write(path: Path, data: str | bytes) -> None:
    """Write a file, text as UTF-8. Makes its folders."""
    with replacing(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to; it becomes `path` if the block succeeds."""
    make_folder(path.parent)
    aside = _aside(path)
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def create(path: Path, data: bytes) -> bool:
    """Create the file; False if it exists."""
    make_folder(path.parent)
    aside = _aside(path)
    try:
        aside.write_bytes(data)
        sync(aside)
        try:
            os.link(aside, path)  # unlike a rename, fails if it exists
        except FileExistsError:
            return False
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return True


def set_aside(path: Path) -> Path:
    """Rename a torn file; return its new path: the name, a number, and .torn."""
    number = sum(1 for _ in path.parent.glob(f"{path.name}.*{TORN}"))
    torn = path.with_name(f"{path.name}.{number}{TORN}")
    os.replace(path, torn)
    sync(path.parent)
    return torn


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `path` if the block succeeds. An existing folder is renamed, then the new
    one, then the old one is deleted: it stays complete until the new one is in its place."""
    make_folder(path.parent)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    former = path.with_name(f"{path.name}.replaced-{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        aside.chmod(0o755)
        sync_all(aside)
        with suppress(FileNotFoundError):
            os.rename(path, former)
        os.rename(aside, path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make the folder, and those above it, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    sync(path.parent)


def sync(path: Path) -> None:
    """Write the content of the file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Sync the folder with everything in it."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inside, name))
        sync(Path(inside))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # unique: many machines write here


# A `Folder` in an object store: a PUT is atomic and durable, and writers agree by a PUT on condition that
# there is no such object. S3, Google's and Azure's stores have it.


Place = str | Path | Folder  # an address, a path of this machine, or the folder at one


@dataclass(frozen=True)
class ObjectFolder:
    """The objects under one address."""

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
            return self.read(name) == data  # this call made it, and only the answer was lost
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
        """Do nothing: there are no unfinished objects."""

    @contextmanager
    def _at(self, name: str) -> Iterator[tuple[Any, str]]:
        """The store and the object's path; turns errors of the client inside into OSError."""
        store, path = opened(self.address)
        with store_errors(f"{self.address}/{name}", (FileNotFoundError, FileExistsError)):
            yield store, f"{path.rstrip('/')}/{name}".rstrip("/")


def keeps_writers_apart(place: Place) -> None:
    """Raise StoreError if the store refuses to write, or lets two writers create one object."""
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
