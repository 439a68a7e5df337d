"""The cost of a mention as the input grows: the offline job on 1,000, 10,000, 100,000 mentions.

Real documents, repeated, each time with other words before the text, so that no cache has them. In a
workspace with a tiny language model, everything else is measured: reading, encoding, retrieval, scheduling,
writing, the driver."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.config import Config
from gemel_ray.errors import Mistake
from gemel_ray.measuring.job import JobFigures, timed
from gemel_ray.measuring.machine import Figures, machine
from gemel_ray.readers import documents
from gemel_ray.records import Row
from gemel_ray.study.variants import SCHEMA

Say = Callable[[str], None]
_ROWS = 1000  # of the written file, at once


def scale(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, sizes: Sequence[int], say: Say
) -> Figures:
    """All figures, by size."""
    figures: dict[int, JobFigures] = {}
    for size in sizes:
        file, linked = output / f"mentions-{size}.parquet", output / f"linked-{size}"
        shutil.rmtree(linked, ignore_errors=True)
        write_mentions(inputs, size, file)
        say(f"{size:,} mentions")
        figures[size], _ = timed(config, workspace, [str(file)], linked)
    return {"machine": machine(), "sizes": figures}


def write_mentions(inputs: Sequence[str], size: int, path: Path) -> None:
    """Write `size` documents of one mention each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        rows = itertools.islice(endless_documents(inputs), size)
        while some := list(itertools.islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(some, SCHEMA))


def endless_documents(inputs: Sequence[str]) -> Iterator[Row]:
    """An endless series of different documents of one mention each."""
    real = [
        (row, mention)
        for file in inputs
        for table in documents(file)
        for row in table.to_pylist()
        for mention in row["given"] or ()
        if not row["error"] and mention["start"] is not None
    ]
    if not real:
        raise Mistake("the input has no mention with a place in its text")
    words = sorted({word for row, _ in real for word in row["text"].split()})
    dice = random.Random(0)
    for number in itertools.count():
        row, mention = real[number % len(real)]
        front = " ".join(dice.choices(words, k=3)) + " " if number >= len(real) else ""
        place = {"start": mention["start"] + len(front), "end": mention["end"] + len(front)}
        yield {
            "id": f"{number}",
            "text": front + row["text"],
            "image": {"bytes": row["image"], "path": row["image_address"]},
            "image_key": row["image_key"],
            "mentions": [place],
        }
