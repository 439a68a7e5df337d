"""Encode's work: a document's picture and its mentions to vectors.

A picture is identified by its bytes and encoded once, in this job or an earlier one (PictureCache). A
picture that cannot be decoded is its document's error. Precomputed features of a workspace, by the picture's
key, are used instead.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.pictures.fetching import Fetcher, fetch_result
from gemel_ray.pictures.images import decode, image_bytes, is_web, naming_image
from gemel_ray.pictures.limits import FILTERED, ImageError
from gemel_ray.readers.pictures import unread_counts
from gemel_ray.stage import Measures, Stage, Work, answer, settings_of
from gemel_ray.stages.encode import Encode
from gemel_ray.stages.retrieve import Retrieve

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from gemel_ray.knowledge.workspace import Features, Workspace
    from gemel_ray.models.encoders import Clip

    OnDecoded = Callable[[tuple[bytes | None, str | None], Image], None]

Picture = tuple[bytes | None, str | None]
Vector = npt.NDArray[np.float32]
_NONE: Picture = (None, None)
_SEEN = 100_000  # URLs whose digests are kept


def start(stage: Encode, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
    """Start Encode in the process that will use it. Only a ranker needs the texts' vectors."""
    return Encoding(stage, workspace, texts=workspace.ranks and settings_of(Retrieve, line).ranking > 0)


class Encoding(Work):
    """`on_decoded` is called with the bytes and address of every picture that is decoded, and the image.
    `texts`: documents' texts are encoded, too."""

    def __init__(
        self,
        stage: Encode,
        workspace: Workspace,
        on_decoded: OnDecoded | None = None,
        *,
        texts: bool = False,
    ) -> None:
        self.stage, self.on_decoded = stage, on_decoded
        self.encode_texts = CachedEncoder(workspace.mention_encoder(stage.device, stage.dtype))
        self.workspace, self.lock = workspace, threading.Lock()
        self.limits, self.texts = stage.limits, texts
        self.threads = ThreadPoolExecutor(stage.threads, thread_name_prefix="decode")
        self.fetching = Fetcher(self.limits, stage.fetch_policy)
        self.cache = PictureCache(workspace.picture_cache(stage.dtype), stage.cache)
        self.seen: dict[str, bytes] = {}  # the digest of the picture at each URL
        self.under_way: dict[bytes, Future[Vector | str]] = {}
        self.counts = {"features": 0, "images": 0, "images_encoded": 0, "documents_without_image": 0}
        self.unread = {"unread": Counter[str](), "unread_pictures": Counter[str]()}

    def __call__(self, batch: pa.Table) -> pa.Table:
        pictures: list[Picture] = list(
            zip(batch["image"].to_pylist(), batch["image_address"].to_pylist(), strict=True)
        )
        if (features := self.workspace.features) is None:
            found = self._found(pictures)
        else:
            found = self._with_features(features, pictures, batch["image_key"].to_pylist())
        for name, counts in unread_counts(batch).items():
            self.unread[name].update(counts)
        texts = self.encode_texts(batch["text"].to_pylist()) if self.texts else [None] * len(batch)
        reasons = [f if isinstance(f, str) else None for f in found]
        errors = [reason if reason and self._fails(reason) else None for reason in reasons]
        columns = {
            "image_vector": [None if isinstance(f, str) else f for f in found],
            "mention_vectors": self._mention_vectors(batch["mentions"]),
            "text_vector": texts,
            "unseen": [None if error else reason for reason, error in zip(reasons, errors, strict=True)],
        }
        return answer(self.stage.writes, columns, errors)

    def _fails(self, reason: str) -> bool:
        """Whether this reason why a picture cannot be read is an error of its document; else it is a note."""
        return self.stage.unreadable == "error" or reason.startswith(FILTERED)

    @cached_property
    def clip(self) -> Clip:
        """The model, loaded with the first picture: many inputs have none."""
        return self.workspace.clip(self.stage.device, self.stage.dtype)

    def _with_features(
        self, features: Features, pictures: list[Picture], keys: list[str | None]
    ) -> list[Vector | str | None]:
        """As `_found`, with the precomputed feature of a document's key where there is one. A key without a
        feature and without a picture cannot be read."""
        ready = [None if key is None else features.of(key) for key in keys]
        self.counts["features"] += sum(r is not None for r in ready)
        left = [_NONE if r is not None else p for p, r in zip(pictures, ready, strict=True)]
        found = [f if r is None else r for f, r in zip(self._found(left), ready, strict=True)]
        return [
            f"the workspace has no feature of the picture {key}" if f is None and key else f
            for f, key in zip(found, keys, strict=True)
        ]

    def _found(self, pictures: list[Picture]) -> list[Vector | str | None]:
        """The vector of each document's picture, or why it cannot be read; None without a picture. Equal
        pictures are read once."""
        distinct = list(dict.fromkeys(p for p in pictures if p != _NONE))
        outcome = self._known(distinct) if self.seen else {}
        new = [p for p in distinct if p not in outcome]
        downloads = {p: self.fetching.ask(p[1]) for p in new if p[0] is None and p[1] and is_web(p[1])}
        here = [p for p in new if p not in downloads]
        read = dict(zip(here, self.threads.map(self._read, here), strict=True))
        read |= {p: self._read(p, download) for p, download in downloads.items()}
        found = self._vectors({r[0]: (r[1], p[1]) for p, r in read.items() if not isinstance(r, str)})
        outcome |= {p: r if isinstance(r, str) else found[r[0]] for p, r in read.items()}
        without = pictures.count(_NONE)
        self.counts["images"] += len(pictures) - without
        self.counts["documents_without_image"] += without
        return [outcome.get(p) for p in pictures]

    def _known(self, pictures: list[Picture]) -> dict[Picture, Vector | str]:
        """Cached vectors of pictures whose URLs this process has fetched before."""
        seen = {p: self.seen[p[1]] for p in pictures if p[0] is None and p[1] in self.seen}
        vectors = self.cache.get(set(seen.values()))
        return {p: vectors[digest] for p, digest in seen.items() if digest in vectors}

    def _read(self, picture: Picture, download: Future[bytes] | None = None) -> tuple[bytes, bytes] | str:
        """The picture's digest and encoded bytes, or why it cannot be read."""
        data, address = picture
        try:
            with naming_image(address):
                data = fetch_result(download) if download else data
            data = image_bytes(data, address, self.limits)
        except ImageError as reason:
            return str(reason)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if download and address:
            self.seen[address] = digest
            while len(self.seen) > _SEEN:
                self.seen.pop(next(iter(self.seen)), None)
        return digest, data

    def _vectors(self, pictures: dict[bytes, tuple[bytes, str | None]]) -> dict[bytes, Vector | str]:
        """Feature, or why there is none, of each picture by its digest. One that another batch is encoding is
        waited for, not encoded again."""
        with self.lock:
            others = {d: self.under_way[d] for d in pictures if d in self.under_way}
            mine = {d: Future[Vector | str]() for d in pictures if d not in others}
            self.under_way |= mine
        found: dict[bytes, Vector | str] = {}
        try:
            found |= self.cache.get(mine)
            made = self._encoded({d: pictures[d] for d in mine if d not in found})
            self.cache.put({d: v for d, v in made.items() if not isinstance(v, str)})
            found |= made
        finally:
            with self.lock:
                for digest in mine:
                    del self.under_way[digest]
            for digest, future in mine.items():
                future.set_result(found.get(digest, "the encoder failed in another batch"))
        return found | {digest: future.result() for digest, future in others.items()}

    def _encoded(self, pictures: dict[bytes, tuple[bytes, str | None]]) -> dict[bytes, Vector | str]:
        """Encode batches with CLIP while threads decode and resize the next pictures."""
        found: dict[bytes, Vector | str] = {}
        prepared = zip(pictures, self.threads.map(self._prepared, pictures.values()), strict=True)
        while some := list(islice(prepared, self.stage.batch)):
            found |= {digest: why for digest, why in some if isinstance(why, str)}
            good = [(digest, pixels) for digest, pixels in some if not isinstance(pixels, str)]
            found |= zip((d for d, _ in good), self.clip.encode_images([p for _, p in good]), strict=True)
            self.counts["images_encoded"] += len(good)
        return found

    def _prepared(self, picture: tuple[bytes, str | None]) -> torch.Tensor | str:
        try:
            with self.lock:
                clip = self.clip
            with naming_image(picture[1]):
                image = decode(picture[0], self.limits, clip.side)
            if self.on_decoded is not None:
                self.on_decoded(picture, image)
            return clip.prepare(image)
        except ImageError as reason:
            return str(reason)

    def _mention_vectors(self, mentions: pa.ChunkedArray) -> list[list[Any]]:
        strings = pc.struct_field(pc.list_flatten(mentions), "mention").to_pylist()
        vectors = iter(self.encode_texts([string or "" for string in strings]))
        return [list(islice(vectors, n)) for n in pc.list_value_length(mentions).to_pylist()]

    def close(self) -> None:
        self.threads.shutdown()
        self.fetching.close()
        self.cache.close()

    def measures(self) -> Measures:
        return self.counts | {name: dict(counts) for name, counts in self.unread.items()}


# Caches of encoders' vectors: equal mentions and equal pictures are encoded once.
#
# `CachedEncoder` caches texts in memory. `PictureCache` caches pictures by their bytes' digest, in a file of
# the workspace that all workers and later jobs share; if it cannot be written, nothing is cached.


_TEXTS = 20_000
_PATIENCE = 30.0  # seconds that one writer waits for another


class CachedEncoder:
    """`encode` of lists of texts, to [n, width], with a cache of the last 20,000. Thread-safe."""

    def __init__(self, encode: Callable[[list[str]], npt.NDArray[np.float32]]) -> None:
        self._encode, self._lock = encode, threading.Lock()
        self._known: dict[str, Vector] = {}

    def __call__(self, texts: list[str]) -> list[Vector]:
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known |= zip(new, self._encode(new) if new else (), strict=True)
        with self._lock:
            self._known |= {text: known[text] for text in new}
            while len(self._known) > _TEXTS:
                del self._known[next(iter(self._known))]
        return [known[text] for text in texts]


class PictureCache:
    """At most `most` vectors in `file`; the oldest are removed first. With 0 nothing is cached."""

    def __init__(self, file: Path, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._base: sqlite3.Connection | None = None
        if not most:
            return
        with suppress(OSError, sqlite3.Error):
            file.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS picture"
                " (number INTEGER PRIMARY KEY AUTOINCREMENT,"
                " digest BLOB UNIQUE NOT NULL, vector BLOB NOT NULL)"
            )
            self._base = base

    def get(self, digests: Iterable[bytes]) -> dict[bytes, Vector]:
        """The vectors that are cached, by digest."""
        if self._base is None or not (wanted := list(digests)):
            return {}
        query = f"SELECT digest, vector FROM picture WHERE digest IN ({','.join('?' * len(wanted))})"
        with self._lock, suppress(sqlite3.Error):
            return {
                digest: np.frombuffer(vector, np.float32)
                for digest, vector in self._base.execute(query, wanted)
            }
        return {}

    def put(self, vectors: Mapping[bytes, Vector]) -> None:
        """Add these. They are dropped if the disk is full or another process locks the file."""
        if self._base is None or not vectors:
            return
        rows = [(digest, np.asarray(vector, np.float32).tobytes()) for digest, vector in vectors.items()]
        with self._lock, suppress(sqlite3.Error), self._base:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT OR IGNORE INTO picture (digest, vector) VALUES (?, ?)", rows)
            self._base.execute(
                "DELETE FROM picture WHERE number <= (SELECT max(number) FROM picture) - ?", [self._most]
            )

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
