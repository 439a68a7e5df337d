"""A workspace in an object store, downloaded to this machine once and mapped from there.

    $GEMEL_RAY_HOME/workspaces/kb-5c1e0a.../    by default under ~/.cache/gemel-ray
        .source                                 the address it is from

The name has a digest of the store's listing: names, sizes and checksums. So a changed workspace is another
folder. Processes of a node share one: the first downloads it, whole or not at all, the others wait.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gemel_ray.starter.models import home
from gemel_ray.storage import make_folder, new_folder
from gemel_ray.stores import StoreError, bucket_is_there, opened, query_store, scheme, store_errors

_SOURCE = ".source"
_LOCAL_ONLY = ("cache", "training")  # folders of a workspace that stay on one machine
_AT_ONCE = 16
_ATTEMPTS = 3
SHARE = "put it where all nodes see it, a shared folder or an object store (docs/cluster.md)"
Say = Callable[[str], None]


@dataclass(frozen=True)
class _File:
    name: str
    bytes: int | None
    checksum: str  # the store's; an MD5 in hexadecimal digits


def not_visible(path: str | Path, what: str, has: str = "does not see") -> str:
    """The message, after the node's name, that a node lacks what all must have."""
    return f"{has} {path} ({what}): {SHARE}"


def local_copy(workspace: str | Path, say: Say) -> Path:
    """The workspace as a folder of this machine. Raises StoreError if it cannot be downloaded, or its files
    differ from the store's listing."""
    if not scheme(workspace):
        return Path(workspace)
    address = str(workspace).rstrip("/")
    listed = query_store(address, lambda filesystem, path: _listed(filesystem, path, address))
    target = home() / "workspaces" / _name(address, listed)
    if not target.exists():
        with _exclusive(target):
            if not target.exists():
                say(f"bringing {address} ({sum(f.bytes or 0 for f in listed) / 2**20:,.0f} MiB) to {target}")
                _download(address, listed, target)
    return target


@dataclass(frozen=True)
class Shared:
    """A workspace for processes of other nodes: a folder that all see, or an address that each downloads."""

    folder: Path
    address: str  # where it was downloaded from, or empty

    @classmethod
    def of(cls, workspace: Path) -> Shared:
        note = workspace / _SOURCE
        return cls(workspace.resolve(), note.read_text() if note.exists() else "")

    def __str__(self) -> str:
        return self.address or str(self.folder)

    def here(self) -> Path:
        """Its folder on the node that calls. Raises StoreError if the store has another workspace by now, or
        this node does not see the folder."""
        if self.folder.exists():
            return self.folder
        if not self.address:
            raise StoreError(f"node {socket.gethostname()} {not_visible(self.folder, 'the workspace')}")
        found = local_copy(self.address, lambda _: None)
        if found.name != self.folder.name:
            raise StoreError(f"{self.address} has changed since this was started: start it again")
        return found


def _listed(filesystem: Any, path: str, address: str) -> list[_File]:
    bucket_is_there(filesystem, path, address)
    found = filesystem.find(path, detail=True)
    files = [
        _File(name, facts.get("size"), _checksum(facts))
        for inside, facts in sorted(found.items())
        if not (name := inside.removeprefix(path).lstrip("/")).startswith(
            (".", *(f"{n}/" for n in _LOCAL_ONLY))
        )
        and not PurePosixPath(name).name.startswith(".")
    ]
    if not any(file.name == "workspace.json" for file in files):
        raise StoreError(f"{address} is not a workspace: it has no workspace.json; copy one there")
    return files


def _checksum(facts: Mapping[str, Any]) -> str:
    settings = facts.get("content_settings") or {}
    if md5 := facts.get("md5Hash") or settings.get("content_md5"):  # of Google, of Azure
        raw = base64.b64decode(md5) if isinstance(md5, str) else bytes(md5)
        return raw.hex()
    return str(facts.get("ETag") or facts.get("etag") or facts.get("blob_id") or "").strip('"')


def _name(address: str, listed: list[_File]) -> str:
    listing = json.dumps([address, *(asdict(file) for file in listed)])
    return f"{PurePosixPath(address).name}-{hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()}"


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; the lock ends with its process."""
    import fcntl

    make_folder(target.parent)
    with (target.parent / f".{target.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(address: str, listed: list[_File], target: Path) -> None:
    filesystem, path = opened(address)
    with store_errors(address), new_folder(target) as aside, ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda file: _download_file(filesystem, f"{path}/{file.name}", aside, file), listed))
        if _listed(filesystem, path, address) != listed:
            raise StoreError(f"{address} changed while it was brought here: try again")
        (aside / _SOURCE).write_text(address)


def _download_file(filesystem: Any, path: str, aside: Path, file: _File) -> None:
    """Download and check a file: its content must have the listed checksum. Where that is not a digest of the
    content (a multipart upload, an encrypted object), two downloads of the listed size must be equal."""
    to, before = aside / file.name, ""
    to.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        filesystem.get_file(path, str(to))
        with to.open("rb") as written:
            digest = hashlib.file_digest(written, "md5").hexdigest()
        whole = file.bytes in (None, to.stat().st_size)
        if whole and digest in (file.checksum, before):
            return
        before = digest
    raise StoreError(
        f"{filesystem.unstrip_protocol(path)} comes otherwise than its store lists it: try again"
    )
