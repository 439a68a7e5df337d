"""Files beyond this machine: s3://, gs://, az://, hf:// and http(s)://, through fsspec.

Credentials, regions and endpoints are those of the drivers: environment variables (AWS_ENDPOINT_URL, ...),
files and machine roles, on every node. An error of a store is one sentence with its address: a driver that is
not installed, a wrong key, a missing bucket, no answer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from gemel_ray.errors import GemelError

_PATIENCE = 30.0  # seconds for a first answer
T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """A kind of store: the driver's package, where its credentials may be, and whether it can be written."""

    package: str
    credentials: str
    written: bool = True


_AMAZON = Store("s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
_GOOGLE = Store("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS")
_AZURE = Store("adlfs", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY")
_STORES = {
    "s3": _AMAZON,
    "gs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    "hf": Store("huggingface_hub", "HF_TOKEN", written=False),
    "http": Store("aiohttp", "no credentials", written=False),
    "https": Store("aiohttp", "no credentials", written=False),
}
for _kind in ("s3", "gs", "az", "abfs"):  # other processes write, so listings are not cached
    fsspec.config.conf.setdefault(_kind, {}).setdefault("use_listings_cache", False)

for _package in ("s3fs", "gcsfs", "adlfs"):  # they log tracebacks of errors that are reported in a sentence
    logging.getLogger(_package).setLevel(logging.CRITICAL)


class StoreError(GemelError, OSError):
    """An error of a store, in one sentence with the address."""


def scheme(address: object) -> str:
    """s3 for s3://bucket/name; empty for a path of this machine."""
    kind, separator, _ = str(address).partition("://")
    return kind.lower() if separator and kind.lower() != "file" else ""


def opened(address: str) -> tuple[Any, str]:
    """fsspec's file system for the address, and the path in it. Raises StoreError if there is none."""
    kind = scheme(address)
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as fault:
        package = _STORES[kind].package if kind in _STORES else str(fault)
        raise StoreError(
            f"{address} needs the package {package}: pip install 'gemel-ray[stores]', on every node"
        ) from fault
    except Exception as fault:
        if kind not in _STORES:
            raise StoreError(f"{address}: there is {', '.join(_STORES)} for {kind}") from fault
        raise _store_error(address, fault) from fault


def query_store(address: str, question: Callable[[Any, str], T]) -> T:
    """The result of `question`, called with the address's file system and path. A store has half a minute to
    answer. Raises StoreError for any error."""
    filesystem, path = opened(address)
    if not scheme(address):
        return question(filesystem, path)
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question(filesystem, path))
        except BaseException as fault:
            answer.set_exception(fault)

    threading.Thread(target=ask, daemon=True).start()
    with store_errors(address):
        try:
            return answer.result(_PATIENCE)
        except TimeoutError as fault:
            if answer.done():
                raise
            words = f"{address}: its store has not answered within {_PATIENCE:g} seconds"
            known = _STORES.get(scheme(address))
            raise StoreError(words + (f"; it asks for {known.credentials}" if known else "")) from fault


def writable(address: object) -> None:
    """Raise StoreError if a store does not answer, refuses access, has no such bucket, or is read-only; or if
    a folder cannot be made or written to."""
    if not (kind := scheme(address)):
        wanted = Path(str(address)).absolute()
        folder = next(path for path in (wanted, *wanted.parents) if path.exists())
        if not folder.is_dir():
            raise StoreError(f"{address} cannot be a folder: {folder} is a file")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(f"{address} cannot be written to: {folder} is read-only for this user")
        return
    if kind not in _STORES or not _STORES[kind].written:
        raise StoreError(
            f"{address} is not written to: give a folder, or an address of s3://, gs:// or az://"
        )

    def look(filesystem: Any, path: str) -> None:
        if not filesystem.exists(f"{path}/manifest.json"):
            bucket_is_there(filesystem, path, str(address))

    query_store(str(address), look)


@contextmanager
def store_errors(address: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn any error of a store's client inside into StoreError, except for `but`."""
    try:
        yield
    except (StoreError, ValueError):
        raise
    except but:
        raise
    except Exception as fault:
        raise _store_error(address, fault) from fault


def bucket_is_there(filesystem: Any, path: str, address: str) -> None:
    """Raise StoreError if the address is in a bucket, or container, that does not exist."""
    bucket = path.partition("/")[0]
    if scheme(address) not in ("s3", "gs", "az", "abfs") or filesystem.exists(bucket):
        return
    try:
        filesystem.ls(bucket)  # with a refused key `exists` is False, but this raises
    except FileNotFoundError as fault:
        raise StoreError(f"{address}: there is no bucket {bucket}") from fault


def _store_error(address: str, fault: Exception) -> StoreError:
    words = (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
    store, name = _STORES.get(scheme(address)), type(fault).__name__
    if store and (isinstance(fault, PermissionError) or "Credential" in name or "credentials" in words):
        return StoreError(f"{address}: access is refused ({words}): look at {store.credentials}")
    if isinstance(fault, FileNotFoundError):
        why = f" ({fault.__cause__})" if fault.__cause__ else ""
        return StoreError(f"there is no {address}{why}")
    return StoreError(f"{address}: {words}")
