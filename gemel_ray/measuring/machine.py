"""The machine a figure was taken on, and the memory of the processes that took part."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from gemel_ray.environment import cores

_EVERY = 0.5  # seconds between two looks


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import psutil
    import torch

    return {
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": platform.processor() or platform.machine(),
        "commit": _commit(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ray", "transformers", "open_clip_torch")},
    }


def _commit() -> str | None:
    """Of the checkout that this package runs from, if it does."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    asked = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    answered = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answered.stdout.strip() or None


@dataclass(frozen=True)
class Look:
    """At this process and those it started, by kind: MiB of the largest of a kind, resident and without what
    it shares with others (the object store, mapped files); processor seconds of all of a kind so far."""

    at: float
    resident: dict[str, float]
    own: dict[str, float]
    processor: dict[str, float]


@contextmanager
def looks() -> Iterator[list[Look]]:
    """What was seen while inside, twice a second."""
    seen: list[Look] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(_EVERY):
            seen.append(look())

    looking = threading.Thread(target=watch, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        end.set()
        looking.join()


def look() -> Look:
    """At this moment."""
    import psutil

    now = Look(time.perf_counter(), {}, {}, {})
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            with process.oneshot():
                name = "this process" if process == here else _kind(process.cmdline())
                held, times = process.memory_info(), process.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        shared = getattr(held, "shared", 0)  # as far as the system tells
        for sizes, size in ((now.resident, held.rss), (now.own, held.rss - shared)):
            sizes[name] = max(sizes.get(name, 0.0), round(size / 2**20, 1))
        now.processor[name] = now.processor.get(name, 0.0) + times.user + times.system
    return now


def peaks(sizes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The most of each kind."""
    most: dict[str, float] = {}
    for some in sizes:
        for name, size in some.items():
            most[name] = max(most.get(name, 0.0), size)
    return most


def _kind(command: Sequence[str]) -> str:
    """ray::MapBatches(_Worker) and the like by their titles, others by their program's name."""
    first = command[0] if command else "?"
    if first.startswith("ray::"):
        return first.split()[0]
    names = [os.path.basename(c) for c in command[:3] if c.endswith(".py")]
    return names[0] if names else os.path.basename(first.split()[0])


def middle(figures: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": round(median(figures), 4), "min": round(min(figures), 4), "max": round(max(figures), 4)}
