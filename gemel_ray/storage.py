"""Writing that survives kills and power cuts: a file or folder is there whole, or not at all.

    write(path, text)                   a file, new or in the place of the one there
    with replacing(path) as aside: ...  the same, for a library that writes to a path itself
    create(path, data)                  only where nothing has this name: of many callers one gets True
    with new_folder(path) as aside: ... a folder; one that was there goes when the new one is in its place
    set_aside(path)                     a torn file, out of the way, under a name that says so

What such a call has done when it returns, a power cut does not undo: contents are synced before a name leads
to them, and the folder that holds the name after. Without that, a cut leaves files of 0 bytes. Names that
begin with a dot are of files being made.

A `Folder` is a place for named files, on a disk or an object store, with the same promises. It renames
nothing: `create` is all that two writers need to agree, and object stores have it (a conditional PUT).
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

from gemel_ray.stores import StoreError, opened, plainly, scheme

TORN = ".torn"  # behind the name of a file that was set aside


class Folder(Protocol):
    """Named files of one place. Names are relative, with slashes; folders come with their files. What cannot
    be done raises OSError; FileNotFoundError where there is no such file."""

    def __str__(self) -> str:
        """Its address, for people."""

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO:
        """To be read from anywhere in it."""

    def write(self, name: str, data: bytes) -> None:
        """In one step for whoever reads, in the place of what was there; lasting when this returns."""

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, but only where there is no such file. Of callers on any machines, whatever they do at
        once, one gets True; the others False, and what stands there is the first one's."""

    def names(self, under: str = "") -> list[str]:
        """Of the files in the folder `under`, sorted; none where there is no such folder. Whatever was
        written when the call began is among them."""

    def remove(self, name: str) -> None:
        """That it is gone lasts no longer than the next `write` or `create` there is lasting; a name that is
        not there is no fault."""

    def set_aside(self, name: str) -> str:
        """Rename a torn file, so that `names` shows it no more among the whole ones; its new name."""

    def folders(self, under: str) -> list[str]:
        """Of the folders directly in the folder `under`."""

    def clear(self, under: str) -> None:
        """Remove the folder `under`, with all that is in it."""

    def tidy(self, under: str) -> None:
        """Remove what writers to the folder `under` were killed at."""


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
    """Text is written as UTF-8. Folders on the way are made."""
    with replacing(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to; it becomes `path` when the block ends well."""
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
    """Whether there was no such file, and this call made it."""
    make_folder(path.parent)
    aside = _aside(path)
    try:
        aside.write_bytes(data)
        sync(aside)
        try:
            os.link(aside, path)  # which, unlike a rename, fails where there is one
        except FileExistsError:
            return False
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return True


def set_aside(path: Path) -> Path:
    """The file's new name: its own, a number, and .torn."""
    number = sum(1 for _ in path.parent.glob(f"{path.name}.*{TORN}"))
    torn = path.with_name(f"{path.name}.{number}{TORN}")
    os.replace(path, torn)
    sync(path.parent)
    return torn


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `path` when the block ends well. What was there is first renamed, then
    the new one, then it is deleted: whole, under one name or another, until the new one is in its place."""
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
    """The folder, and those above it, as lasting as what will be in them."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    sync(path.parent)


def sync(path: Path) -> None:
    """What the file or folder holds is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """The folder with everything in it."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inside, name))
        sync(Path(inside))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # workers of many machines write here


# A `Folder` (storage.py) in an object store: a PUT is one step and lasts, and a PUT on condition that there
# is no such object is what two writers agree by. S3, Google's and Azure's stores have it.


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
