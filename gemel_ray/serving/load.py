"""A load generator: requests arrive at a given rate, however slow the answers are (open loop), as users do.

A closed loop waits for slow answers and so hides them. Gaps between arrivals are exponential. Knows an
endpoint only by its address.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import httpx
import numpy as np

from gemel_ray.client import document
from gemel_ray.errors import Mistake
from gemel_ray.readers import documents
from gemel_ray.records import Row

_TIMEOUT = 300.0


def requests(files: Sequence[str], most: int) -> list[Row]:
    """The first documents of the files, as requests. Raises ValueError where there are none."""
    rows = (row for file in files for table in documents(file) for row in table.to_pylist())
    found = list(itertools.islice((_request(row) for row in rows if row["error"] is None), most))
    if not found:
        raise Mistake(f"there are no documents in {', '.join(files)}")
    return found


def _request(row: Row) -> Row:
    address, mentions = row["image_address"], None
    there = Path(address) if address and "://" not in address else address
    image = there if row["image"] is None else row["image"]
    if row["given"] is not None:
        mentions = [(m["start"], m["end"]) for m in row["given"] if m["start"] is not None]
    return document(row["text"], image, mentions)


class LoadFigures(TypedDict):
    """See `Load.figures`."""

    requests: int
    statuses: dict[str, int]
    latency: dict[str, float | None]
    answered_per_second: float
    mentions_per_second: float


@dataclass
class Load:
    """The results: of answered requests, their `seconds`, and in `answered` the time of the answer and its
    number of rows; of all requests their statuses (0: no answer). `arriving`: seconds until the last was
    sent."""

    seconds: list[float] = field(default_factory=list)
    answered: list[tuple[float, int]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    arriving: float = 0.0

    def figures(self) -> LoadFigures:
        """Latencies in seconds, of answers with status 200 only; rates a second, over the last three quarters
        of the time in which requests are sent: neither filling up nor draining counts."""
        steady = [rows for at, rows in self.answered if self.arriving / 4 <= at <= self.arriving]
        lasted = 0.75 * self.arriving or 1.0
        at = (50, 95, 99, 100)
        latencies = np.percentile(self.seconds, at).round(4).tolist() if self.seconds else [None] * len(at)
        return {
            "requests": self.statuses.total(),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "latency": dict(zip(("p50", "p95", "p99", "longest"), latencies, strict=True)),
            "answered_per_second": round(len(steady) / lasted, 3),
            "mentions_per_second": round(sum(steady) / lasted, 3),
        }


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times of a Poisson process: `rate` a second, from 0 to `seconds`."""
    draw, at = np.random.default_rng(seed), 0.0
    while (at := at + float(draw.exponential(1 / rate))) < seconds:
        yield at


async def loaded(address: str, sent: Sequence[Row], times: Iterable[float], key: str) -> Load:
    """Send the requests of `sent` in a cycle, at `times` (seconds from now)."""
    load, began = Load(), time.monotonic()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=address, headers=headers, timeout=_TIMEOUT, limits=limits, trust_env=False
        ) as http,
        asyncio.TaskGroup() as tasks,
    ):
        for at, request in zip(times, itertools.cycle(sent), strict=False):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            tasks.create_task(_send(http, request, load, began))
        load.arriving = time.monotonic() - began
    return load


async def _send(http: httpx.AsyncClient, request: Row, load: Load, start: float) -> None:
    began = time.monotonic()
    try:
        answer = await http.post("/v1/link", json=request)
    except httpx.HTTPError:
        load.statuses[0] += 1
        return
    load.statuses[answer.status_code] += 1
    if answer.status_code == 200:
        load.seconds.append(time.monotonic() - began)
        load.answered.append((time.monotonic() - start, len(answer.json()["links"])))
