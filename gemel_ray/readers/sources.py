"""Which files an input means: those that a reader knows, each once; and how many others were skipped."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from glob import has_magic
from typing import Any

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.errors import Mistake
from gemel_ray.readers import opening
from gemel_ray.readers.columnar import ARROW, PARQUET, arrow_batches
from gemel_ray.readers.delimited import TABLES, table_rows
from gemel_ray.readers.json_files import JSON, is_whole, json_rows
from gemel_ray.readers.pictures import unread_counts, unread_lines
from gemel_ray.readers.reading import BATCH, documents
from gemel_ray.readers.shards import SHARDS
from gemel_ray.stores import bucket_is_there, opened, query_store, scheme, store_errors

READ = (*JSON, *PARQUET, *ARROW, *TABLES, *SHARDS)
_SHOWN = ".json, .jsonl, .ndjson, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet, .arrow, .feather, .tar"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAGIC = re.compile(r"[*?\[]")
_MOST = 100_000  # files that braces may expand to
_AT_ONCE = 32  # addresses that are searched at once
Say = Callable[[str], None]


@dataclass
class _Seen:
    """The files of an address, and how many were passed over, by kind."""

    address: str
    files: list[tuple[str, str]] = field(default_factory=list)  # address and identity of each
    passed: Counter[str] = field(default_factory=Counter)


def files(inputs: Sequence[str], say: Say | None = None) -> list[str]:
    """The input's files, each once: folders are searched for those that a reader knows, and 00000..00012 in
    braces is expanded. `say` receives a sentence on how many others there were, by kind. Raises ValueError
    for what does not exist or no reader can read."""
    addresses = list(itertools.chain.from_iterable(map(_spelled_out, inputs)))
    for first in {scheme(address): address for address in reversed(addresses)}.values():
        query_store(first, lambda filesystem, path: filesystem.exists(path))  # reports a wrong key first
    folders: dict[str, WrittenFolders] = {}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        seen = list(threads.map(partial(_search, folders=folders), addresses))
    found: dict[str, str] = {}
    passed = Counter[str]()
    for one in seen:
        passed += one.passed
        for address, identity in one.files:
            passed["given twice"] += identity in found
            found.setdefault(identity, address)
    if say and (summary := _summary(passed)):
        say(summary)
    return list(found.values())


def _summary(passed: Counter[str]) -> str:
    """A sentence on what was passed over; "" if nothing was."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in passed.most_common(12) if number)
    return f"passed over {passed.total():,} files: {kinds}" if kinds else ""


def _search(address: str, folders: dict[str, WrittenFolders]) -> _Seen:
    """The files that an address means. Raises ValueError where there are none."""
    filesystem, path = opened(address)
    written = folders.setdefault(scheme(address), WrittenFolders(filesystem))
    seen = _Seen(address)
    with store_errors(address):
        if address.lower().endswith(READ) and filesystem.isfile(
            path
        ):  # first: over http, a page looks like a folder
            if owner := _owner(written, path, address, workspaces=False):
                raise Mistake(f"{address} is of {owner}, which gemel-ray link wrote: it is not an input")
            seen.files.append((address, _identity(address, path)))
            return seen
        if filesystem.isdir(path):
            root, inside = path.rstrip("/"), sorted(filesystem.find(path))
            _take(seen, inside, WrittenFolders(filesystem, root, set(inside)), root)
        elif filesystem.exists(path):
            raise Mistake(f"{address}: a document file ends in {_SHOWN}")
        else:
            root, inside = _matched(filesystem, path)
            if not inside:
                bucket_is_there(filesystem, path, address)
                raise Mistake(f"there is no {address}")
            _take(seen, inside, written, root)
    if not seen.files:
        summary = _summary(seen.passed)
        raise Mistake(f"{address} holds no file that ends in {_SHOWN}" + (f" ({summary})" if summary else ""))
    return seen


def _matched(filesystem: Any, path: str) -> tuple[str, list[str]]:
    """The folder that a pattern begins with, and the files that it matches or that are in a folder that it
    matches."""
    magic = _MAGIC.search(path) if has_magic(path) else None
    if magic is None:
        return "", []
    found = filesystem.glob(path, detail=True)
    folders = [p for p, about in found.items() if about["type"] == "directory"]
    inside = {p for p, about in found.items() if about["type"] != "directory"}
    inside.update(file for folder in folders for file in filesystem.find(folder))
    return path[: magic.start()].rpartition("/")[0], sorted(inside)


def _take(seen: _Seen, inside: Sequence[str], written: WrittenFolders, root: str) -> None:
    """Add the documents among the files of a folder or a pattern."""
    there, remote = set(inside), "://" in seen.address
    for path in inside:
        if kind := _passed_over(seen.address, path, root, there, written):
            seen.passed[kind] += 1
        else:
            named = str(written.filesystem.unstrip_protocol(path)) if remote else path
            seen.files.append((named, _identity(seen.address, path)))


def _passed_over(address: str, path: str, root: str, there: set[str], written: WrittenFolders) -> str | None:
    """The kind of a file that is not a document; None for a document."""
    if any(part.startswith(HIDDEN) for part in path.removeprefix(root).strip("/").split("/")):
        return "hidden"
    if _owner(written, path, address):
        return "of gemel-ray"
    return foreign(path, there) if path.lower().endswith(READ) else ending(path)


def _owner(written: WrittenFolders, path: str, address: str, *, workspaces: bool = True) -> str | None:
    """The folder written by this program that a file is in; never one of the web, which is not written to."""
    return None if scheme(address) in ("http", "https", "hf") else written.owner(path, workspaces=workspaces)


def _identity(address: str, path: str) -> str:
    """What a file is compared by: for a link, its target."""
    kind = scheme(address)
    return f"{kind}://{path}" if kind else os.path.realpath(path)


def _spelled_out(address: str) -> Iterator[str]:
    """The addresses of {00000..00012}, with leading zeros, and {a,b}, as in shells."""
    braces = _BRACES.search(address)
    if braces is None:
        yield address
        return
    inner = braces[1]
    if between := _RANGE.fullmatch(inner):
        first, last, width = int(between[1]), int(between[2]), len(between[1])
        if not 0 <= last - first < _MOST:
            raise Mistake(f"{address}: {{{inner}}} stands for no files, or for more than {_MOST:,}")
        names = [f"{number:0{width}}" for number in range(first, last + 1)]
    elif "," in inner:
        names = inner.split(",")
    else:
        yield address
        return
    for name in names:
        yield from _spelled_out(address[: braces.start()] + name + address[braces.end() :])


# Files among the input that are not documents: hidden ones, those that this program wrote, and what the tools
# of data sets write beside documents.


HIDDEN = (".", "_")  # what a hidden name begins with, as for Arrow and Spark
_PACKING = (".gz", ".bz2", ".xz", ".zst")
_OTHERS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "package.json",
           "package-lock.json", "croissant.json")  # fmt: skip
_STATS = re.compile(r"\d{4,}_stats\.json")  # img2dataset's, of a shard
_SHARD = re.compile(r"\d{4,}")
# Written by link, beside its links and in subfolders (job/results.py); a file `run` marks such a folder.
_WRITTEN = ("manifest.json", "inputs.json", "progress.json", "report.html", "traceback.txt", "run")
_WITHIN = ("links/", "parts/", "ledger/", "index/", "passes/", "done/")


@dataclass
class WrittenFolders:
    """Which folders this program has written: a file in each marks it. `listed`: all files below `root`, if
    they are known, which saves queries."""

    filesystem: Any
    root: str = "\0"
    listed: Collection[str] = ()
    seen: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def owner(self, path: str, *, workspaces: bool = True) -> str | None:
        """The output folder that link wrote a file to, or the workspace that it is in."""
        folder, _, inner = path.rpartition("/")
        while folder:
            if folder not in self.seen:
                self.seen[folder] = (
                    self._holds(folder, "run"),
                    self._holds(folder, "workspace.json") and self._holds(folder, "entities.arrow"),
                )
            output, workspace = self.seen[folder]
            if (workspace and workspaces) or (output and (inner in _WRITTEN or inner.startswith(_WITHIN))):
                return folder
            folder, _, name = folder.rpartition("/")
            inner = f"{name}/{inner}"
        return None

    def _holds(self, folder: str, name: str) -> bool:
        if f"{folder}/".startswith(f"{self.root}/"):
            return f"{folder}/{name}" in self.listed
        return bool(self.filesystem.exists(f"{folder}/{name}"))


def foreign(path: str, beside: Collection[str]) -> str | None:
    """Which tool wrote a file beside the documents, if any; `beside`: all files."""
    folder, _, name = path.rpartition("/")
    if name in _OTHERS or (name == "state.json" and f"{folder}/dataset_info.json" in beside):
        return "of other tools"
    shard = folder.rpartition("/")[2]
    pair_s = bool(_SHARD.fullmatch(shard)) and f"{folder}.parquet" in beside
    repeats = bool(_SHARD.fullmatch(name.removesuffix(".parquet"))) and (
        path.removesuffix(".parquet") + ".tar" in beside
    )
    return "of img2dataset" if _STATS.fullmatch(name) or pair_s or repeats else None


def ending(path: str) -> str:
    """The kind of a file that no reader knows: its ending."""
    name = path.rpartition("/")[2].lower()
    parts = name.split(".")
    if len(parts) == 1:
        return "without an ending"
    packed = len(parts) > 2 and f".{parts[-1]}" in _PACKING
    return "." + ".".join(parts[-2:] if packed else parts[-1:])


_FILES = 16  # files that are looked into


def first_look(files: Sequence[str]) -> list[str]:
    """Messages about what is not read of the first documents of the first files, and what cannot be read."""
    looked, found = 0, {"unread": Counter[str](), "unread_pictures": Counter[str]()}
    wrong: list[str] = []
    for address in files[:_FILES]:
        table = next(documents(address, batch=BATCH), None)
        if table is None:
            continue
        looked += len(table)
        for name, counts in unread_counts(table).items():
            found[name].update(counts)
        wrong += table["error"].drop_null().to_pylist()
    lines = unread_lines(found)
    if wrong:
        lines.append(f"{len(wrong):,} cannot be read: {wrong[0]}")
    return [f"of the first {looked:,} documents: {line}" for line in lines]


def count(address: str) -> int | None:
    """The number of documents of a file; None if it cannot be read, is a shard without statistics beside it,
    or would have to be read in full over a network."""
    name = address.lower()
    try:
        if name.endswith(SHARDS):
            return _counted_beside(address)
        if scheme(address) and not name.endswith(PARQUET):
            return None
        if name.endswith(TABLES):
            return sum(1 for _ in table_rows(address))
        if name.endswith((*PARQUET, *ARROW)):
            with fsspec.open(address, "rb") as file:
                if name.endswith(ARROW):
                    return sum(len(batch) for batch in arrow_batches(file))
                return int(pq.ParquetFile(file).metadata.num_rows)
        if is_whole(address):
            return sum(1 for _ in json_rows(address))
        with opening.opened(address) as file:
            return sum(bool(line.strip()) for line in opening.lines(file))
    except Exception:  # the reader reports why, as a row
        return None


def _counted_beside(shard: str) -> int | None:
    """The pairs that img2dataset put into a shard, by its 00000_stats.json or its Parquet of statuses."""
    stem = shard[: shard.lower().rindex(".tar" if ".tar" in shard.lower() else ".")]
    filesystem, path = fsspec.core.url_to_fs(stem)
    if filesystem.exists(f"{path}_stats.json"):
        with filesystem.open(f"{path}_stats.json") as file:
            return int(json.load(file)["successes"])
    if filesystem.exists(f"{path}.parquet"):
        with filesystem.open(f"{path}.parquet") as file:
            status = pq.read_table(file, columns=["status"])["status"]
        return int(pc.sum(pc.equal(status, "success")).as_py() or 0)
    return None
