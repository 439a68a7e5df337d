"""Versions of a workspace's knowledge: where each is, which is in use, which files two of them share.

    WORKSPACE/                    version 0, as build made it
    WORKSPACE/versions/3/         version 3: workspace.json, tree/, entities.arrow, bank/, features/, vectors/
    WORKSPACE/versions/current    number of the version in use; without this file, 0

A version is complete and, once it has its number, never changed. Files that equal the former version's are
hard links to them.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gemel_ray import storage
from gemel_ray.errors import Mistake, WorkspaceError

FIRST: Final = "0"
FORMAT: Final = 1  # of workspace.json
Facts = dict[str, Any]  # the content of workspace.json
_VERSIONS, _CURRENT, _LOCK = "versions", "current", "lock"


def folder(workspace: Path, version: str) -> Path:
    """The folder of this version's knowledge."""
    return workspace if version == FIRST else workspace / _VERSIONS / version


def current(workspace: Path) -> str:
    """The version in use: one small read, cheap enough for every second. Raises ValueError if the file is
    damaged."""
    pointer = workspace / _VERSIONS / _CURRENT
    try:
        version = pointer.read_text().strip()
    except FileNotFoundError:
        return FIRST
    if not version.isdecimal():
        raise Mistake(
            f"{pointer} is torn, as by a power cut: choose a version with gemel-ray kb rollback --workspace "
            f"{workspace} VERSION; there are {', '.join(known(workspace))}"
        )
    return version


def current_folder(workspace: Path) -> Path:
    """The folder of the knowledge in use."""
    return folder(workspace, current(workspace))


def known(workspace: Path) -> list[str]:
    """All versions, oldest first."""
    later = (path.name for path in (workspace / _VERSIONS).glob("*") if path.name.isdecimal())
    return [FIRST, *sorted(later, key=int)]


def read_facts(workspace: Path, version: str | None = None) -> Facts:
    """The content of workspace.json of `version`, or of the current one. Raises WorkspaceError for a folder
    that is not a workspace of this format."""
    inside = current_folder(workspace) if version is None else folder(workspace, version)
    try:
        facts: Facts = json.loads((inside / "workspace.json").read_text())
    except (OSError, ValueError) as fault:
        missing = isinstance(fault, FileNotFoundError)
        why = f"is not a workspace ({fault})"
        if missing:
            why = "is not a workspace: it has no workspace.json" if inside.is_dir() else "does not exist"
        raise WorkspaceError(f"{workspace} {why}; make one with gemel-ray build") from fault
    if facts.get("format") != FORMAT:
        raise WorkspaceError(
            f"{workspace} has format {facts.get('format')}; this version reads {FORMAT}: build it again"
        )
    return facts


def following(workspace: Path) -> str:
    """The number of a new version: no earlier version, used or not, had it."""
    return str(int(known(workspace)[-1]) + 1)


def use(workspace: Path, version: str) -> None:
    """Make this version the current one, atomically. Raises ValueError if it does not exist."""
    if version not in (there := known(workspace)):
        raise Mistake(f"{workspace} has no version {version}; there are: {', '.join(there)}")
    pointer = workspace / _VERSIONS / _CURRENT
    storage.write(pointer, f"{version}\n")


@contextmanager
def locked(workspace: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Allow one change of the workspace's knowledge at a time: a second waits, and says so. The lock ends
    with its process, however that ends; unfinished versions of killed processes are removed."""
    import fcntl

    home = workspace / _VERSIONS
    home.mkdir(exist_ok=True)
    with (home / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another gemel-ray kb is at work on {workspace}; waiting for it to end ({home / _LOCK})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in home.glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield


def share(former: Path, new: Path, without: str) -> None:
    """Replace equal files of both folders by hard links, so that disk and mapped memory have one copy; but
    not in the folder `without`."""
    for file in sorted(path for path in new.rglob("*") if path.is_file()):
        inside = file.relative_to(new)
        old = former / inside
        if inside.parts[0] == without or not old.is_file() or old.samefile(file):
            continue
        if not filecmp.cmp(old, file, shallow=False):
            continue
        aside = file.with_name(f".{file.name}")
        linked(old, aside)
        aside.replace(file)


def linked(source: str | Path, target: str | Path) -> None:
    """Hard-link the file; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
