"""Encode beside the bare model: pictures a second, decoded and encoded, against one pass of CLIP alone."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pyarrow as pa

from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.images import read_image
from gemel_ray.models.limits import ImageError
from gemel_ray.stages.encode import Encode

_BATCHES = (16, 32, 64, 128)
_PICTURES = 512


def encoding(stage: Encode, workspace: Workspace, table: pa.Table) -> dict[str, Any] | None:
    """Of the first 512 pictures of `table`; None where it has none. The stage starts without its cache."""
    documents = pa.table({name: table[name] for name in ("image", "image_address", "image_key", "given")})
    documents = documents.rename_columns(["image", "image_address", "image_key", "mentions"])
    pictures = [i for i, (b, a) in enumerate(zip(*_where(documents), strict=True)) if b or a][:_PICTURES]
    if not pictures:
        return None
    documents = documents.take(pictures)
    clip = workspace.clip(stage.device, stage.dtype)
    prepared = []
    began = time.perf_counter()
    for data, address in zip(*_where(documents), strict=True):
        try:
            prepared.append(clip.prepare(read_image(data, address, target=clip.side)))
        except ImageError:
            continue
    decoding = len(prepared) / (time.perf_counter() - began)
    bare: dict[int, float] = {}
    for size in _BATCHES:
        clip.encode_images(prepared[:size])  # the first pass of a size is slower
        began = time.perf_counter()
        for start in range(0, len(prepared), size):
            clip.encode_images(prepared[start : start + size])
        bare[size] = len(prepared) / (time.perf_counter() - began)
    best = max(bare, key=lambda size: bare[size])
    work: Any = replace(stage, cache=False).start(workspace)
    work(documents.slice(0, 8))
    began = time.perf_counter()
    for start in range(0, len(documents), 64):
        work(documents.slice(start, 64))
    reached = len(documents) / (time.perf_counter() - began)
    work.close()
    return {
        "pictures": len(prepared),
        "decoded_per_second_one_thread": round(decoding, 1),
        "bare_clip_per_second": round(bare[best], 1),
        "best_batch": best,
        "stage_per_second": round(reached, 1),
        "stage_over_bare": round(reached / bare[best], 3),
    }


def _where(documents: pa.Table) -> tuple[list[bytes | None], list[str | None]]:
    return documents["image"].to_pylist(), documents["image_address"].to_pylist()
