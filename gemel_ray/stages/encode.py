"""Encode: a document's picture and its mentions to vectors, in one visit.

A picture is decoded and encoded once however many mentions its text has. What cannot be decoded is
that document's error. A workspace may bring features ready-made, by the picture's key: those are taken.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.models.images import ImageError, ImageLimits, read_image
from gemel_ray.stage import MACHINE, Stage, Work, answer

if TYPE_CHECKING:
    import torch

    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.models.clip import Clip

VECTOR = pa.list_(pa.float32())
Picture = tuple[bytes | None, str | None]
_NONE: Picture = (None, None)


@dataclass(frozen=True, kw_only=True)
class Encode(Stage):
    """`batch`: pictures in one pass of CLIP; `threads`: pictures decoded at once; limits of one picture."""

    reads: ClassVar = ("image", "image_address", "image_key", "mentions")
    writes: ClassVar = pa.schema(
        [
            pa.field("image_vector", VECTOR),  # CLIP's feature as the mapper takes it, or null
            pa.field("mention_vectors", pa.list_(VECTOR)),  # of unit length, one a mention
        ]
    )
    device: str = field(default="auto", metadata=MACHINE)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int = field(default=64, metadata=MACHINE)
    threads: int = field(default=2, metadata=MACHINE)
    megapixels: float = 64.0
    megabytes: float = 32.0
    seconds: float = 10.0

    def start(self, workspace: Workspace) -> Work:
        return _Encoding(self, workspace)


class _Encoding(Work):
    def __init__(self, stage: Encode, workspace: Workspace) -> None:
        self.stage = stage
        self.encode_mentions = workspace.mention_encoder(stage.device, stage.dtype)
        self.workspace, self.loading = workspace, threading.Lock()
        self.limits = ImageLimits(
            pixels=int(stage.megapixels * 1e6), bytes=int(stage.megabytes * 2**20), seconds=stage.seconds
        )
        self.decoders = ThreadPoolExecutor(stage.threads, thread_name_prefix="decode")
        self.counts = {"features": 0, "images": 0, "images_encoded": 0, "documents_without_image": 0}

    def __call__(self, batch: pa.Table) -> pa.Table:
        pictures: list[Picture] = list(
            zip(batch["image"].to_pylist(), batch["image_address"].to_pylist(), strict=True)
        )
        ready, lacking = self._ready_made(pictures, batch["image_key"].to_pylist())
        vectors, errors = self._image_vectors(
            [_NONE if r is not None else p for p, r in zip(pictures, ready, strict=True)]
        )
        vectors = [v if r is None else r for v, r in zip(vectors, ready, strict=True)]
        errors = [e or missing for e, missing in zip(errors, lacking, strict=True)]
        columns = {"image_vector": vectors, "mention_vectors": self._mention_vectors(batch["mentions"])}
        return answer(self.stage.writes, columns, errors)

    @cached_property
    def clip(self) -> Clip:
        """Loaded by the first picture: many inputs have none."""
        return self.workspace.clip(self.stage.device, self.stage.dtype)

    def _ready_made(
        self, pictures: list[Picture], keys: list[str | None]
    ) -> tuple[list[Any], list[str | None]]:
        """Feature or None by each document's key; and a reason where there is neither it nor a picture."""
        features = self.workspace.features
        if features is None:
            return [None] * len(keys), [None] * len(keys)
        ready = [None if key is None else features.of(key) for key in keys]
        self.counts["features"] += sum(r is not None for r in ready)
        return ready, [
            f"the workspace has no feature of the picture {key}" if key and r is None and p == _NONE else None
            for p, key, r in zip(pictures, keys, ready, strict=True)
        ]

    def _image_vectors(self, pictures: list[Picture]) -> tuple[list[Any], list[str | None]]:
        """Vector or None, and reason or None, of each document's picture; equal pictures are one."""
        distinct = list(dict.fromkeys(p for p in pictures if p != _NONE))
        prepared = list(self.decoders.map(self._prepared, distinct))
        good = [(p, t) for p, t in zip(distinct, prepared, strict=True) if not isinstance(t, str)]
        vector_of: dict[Picture, npt.NDArray[np.float32]] = {}
        for start in range(0, len(good), self.stage.batch):
            part = good[start : start + self.stage.batch]
            vector_of.update(
                zip((p for p, _ in part), self.clip.encode_images([t for _, t in part]), strict=True)
            )
        why = {p: t for p, t in zip(distinct, prepared, strict=True) if isinstance(t, str)}
        self.counts["images"] += sum(p != _NONE for p in pictures)
        self.counts["images_encoded"] += len(good)
        self.counts["documents_without_image"] += sum(p == _NONE for p in pictures)
        return [vector_of.get(p) for p in pictures], [why.get(p) for p in pictures]

    def _prepared(self, picture: Picture) -> torch.Tensor | str:
        try:
            with self.loading:
                clip = self.clip
            image = read_image(*picture, self.limits, clip.side)
            if self.workspace.watch is not None:
                self.workspace.watch(picture, image)
            return clip.prepare(image)
        except ImageError as reason:
            return str(reason)

    def _mention_vectors(self, mentions: pa.ChunkedArray) -> list[list[Any]]:
        strings = [[m["mention"] or "" for m in row] for row in mentions.to_pylist()]
        flat = [s for row in strings for s in row]
        vectors = iter(self.encode_mentions(flat) if flat else ())
        return [[next(vectors) for _ in row] for row in strings]

    def close(self) -> None:
        self.decoders.shutdown()

    def measures(self) -> dict[str, Any]:
        return dict(self.counts)
