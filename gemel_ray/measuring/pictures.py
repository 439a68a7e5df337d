"""The Encode stage compared with CLIP alone: pictures per second, decoded and encoded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypedDict

import pyarrow as pa

from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.pictures.images import is_web, read_image
from gemel_ray.pictures.limits import ImageError
from gemel_ray.readers import documents
from gemel_ray.stages.encode import Encode
from gemel_ray.starter.demo import DATA

_BATCHES = (16, 32, 64, 128)
_PICTURES = 512


class EncodeFigures(TypedDict):
    """Pictures per second of decoding, of CLIP alone with its best batch size, and of the stage."""

    pictures: str
    decoded_per_second_one_thread: float
    bare_clip_per_second: float
    best_batch: int
    stage_per_second: float
    stage_over_bare: float


def encoding(stage: Encode, workspace: Workspace, inputs: Sequence[str]) -> EncodeFigures:
    """The figures for the first 512 pictures of `inputs`, or, if these have none, of the starter's. The stage
    starts with an empty cache."""
    table, whose = _pictured(inputs), "the input's"
    if not len(table):
        table, whose = _pictured([str(DATA / "test.parquet")]), "the starter's"
    clip = workspace.clip(stage.device, stage.dtype)
    prepared = []
    began = time.perf_counter()
    for data, address in zip(*_where(table), strict=True):
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
    work: Any = replace(stage, cache=0).start(workspace)
    work(table.slice(0, 8))
    began = time.perf_counter()
    for start in range(0, len(table), 64):
        work(table.slice(start, 64))
    reached = len(table) / (time.perf_counter() - began)
    work.close()
    return {
        "pictures": f"{len(prepared)}, {whose}",
        "decoded_per_second_one_thread": round(decoding, 1),
        "bare_clip_per_second": round(bare[best], 1),
        "best_batch": best,
        "stage_per_second": round(reached, 1),
        "stage_over_bare": round(reached / bare[best], 3),
    }


def _pictured(inputs: Sequence[str]) -> pa.Table:
    """The first documents with a picture that need not be fetched from the web, as Encode reads them."""
    tables: list[pa.Table] = []
    for table in chain.from_iterable(documents(file) for file in inputs):
        pictures = zip(*_where(table), strict=True)
        mask = [bool(data or (address and not is_web(address))) for data, address in pictures]
        tables.append(table.filter(pa.array(mask, pa.bool_())))
        if sum(map(len, tables)) >= _PICTURES:
            break
    found = pa.concat_tables(tables).slice(0, _PICTURES)
    return found.rename_columns({"given": "mentions"}).select(Encode.reads)


def _where(table: pa.Table) -> tuple[list[bytes | None], list[str | None]]:
    return table["image"].to_pylist(), table["image_address"].to_pylist()
