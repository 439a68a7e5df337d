"""Power cuts, simulated: a folder that loses what was not synced, or half of it, or nothing.

A journaling file system promises this much and no more: a file's content is what it was at its last fsync,
or anything between that and now; a folder's entries are what they were at its last fsync, or after any of the
operations since, in their order; a rename is one operation. Which, the dice say.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Entries = dict[str, int]  # names in a folder, and their inodes
_CHANGES = ("replace", "rename", "link", "unlink", "mkdir", "rmdir")


class Cut(BaseException):
    """The power is gone: nothing the process does any more is seen."""


class Disk:
    """`root`, from now on; what is there already is synced."""

    def __init__(self, root: Path, dice: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.root, self.dice = root, dice
        self.contents: dict[int, bytes] = {}  # by inode: as last synced
        self.states: dict[
            int, list[Entries]
        ] = {}  # by a folder's inode: as last synced, and after each change
        self.open: list[int] = []  # so that no inode is given to another file
        self.left, self.real = -1, {name: getattr(os, name) for name in (*_CHANGES, "fsync")}
        for folder, _, names in os.walk(root):
            self._synced(os.open(folder, os.O_RDONLY))
            for name in names:
                self._synced(os.open(Path(folder, name), os.O_RDONLY))
        for name in _CHANGES:
            patch.setattr(os, name, self._changing(self.real[name]))
        patch.setattr(os, "fsync", self._fsync)

    def until_cut(self, calls: int, work: Callable[[], object]) -> bool:
        """Do the work until it has made so many calls of the file system; whether the power was cut."""
        self.left = calls
        try:
            work()
        except Cut:
            return True
        finally:
            self.left = -1
        return False

    def restart(self) -> None:
        """Put into `root` what the cut has left."""
        whole = self._left_of(self.root.stat().st_ino)
        for name, change in self.real.items():
            setattr(os, name, change)
        for descriptor in self.open:
            os.close(descriptor)
        shutil.rmtree(self.root)
        _make(self.root, whole)

    def _tick(self) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1

    def _changing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*paths: Any, **options: Any) -> Any:
            self._tick()
            done = real(*paths, **options)
            for path in paths:
                if isinstance(path, str | os.PathLike) and "dir_fd" not in options:
                    with contextlib.suppress(FileNotFoundError):
                        self._noted(Path(path).parent)
            return done

        return change

    def _fsync(self, descriptor: int) -> None:
        self._tick()
        self._synced(os.dup(descriptor))

    def _synced(self, descriptor: int) -> None:
        self.open.append(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.states[found.st_ino] = [_entries(descriptor)]
        else:
            self.contents[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _noted(self, folder: Path) -> None:
        self.states.setdefault(folder.stat().st_ino, [{}]).append(_entries(folder))

    def _left_of(self, inode: int) -> dict[str, Any]:
        """A folder after the cut: bytes by name, and folders."""
        found = {p.stat().st_ino: p for p in [self.root, *self.root.rglob("*")]}
        states = self.states.get(inode, [{}])
        if inode in found:
            states = [*states, _entries(found[inode])]
        chosen = self.dice.choice(states)
        left: dict[str, Any] = {}
        for name, inside in chosen.items():
            folder = inside in self.states or (inside in found and found[inside].is_dir())
            left[name] = self._left_of(inside) if folder else self._content(inside, found.get(inside))
        return left

    def _content(self, inode: int, now: Path | None) -> bytes:
        synced = self.contents.get(inode, b"")
        written = now.read_bytes() if now else synced
        if written == synced:
            return synced
        return self.dice.choice([synced, written, written[: self.dice.randrange(len(written) + 1)]])


def rounds(number: int, patch: pytest.MonkeyPatch) -> Iterator[tuple[random.Random, pytest.MonkeyPatch]]:
    """Dice for each round, and what undoes its changes."""
    for seed in range(number):
        with patch.context() as own:
            own.setattr(os, "fsync", lambda _: None)  # outside the simulation nothing is cut
            yield random.Random(seed), own


def _entries(folder: Path | int) -> Entries:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _make(folder: Path, inside: dict[str, Any]) -> None:
    folder.mkdir()
    for name, what in inside.items():
        if isinstance(what, dict):
            _make(folder / name, what)
        else:
            (folder / name).write_bytes(what)
