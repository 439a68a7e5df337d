"""The machine a figure was taken on, and the memory of the processes that took part."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any

_EVERY = 0.5  # seconds between two looks


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import psutil
    import torch

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ray", "transformers", "open_clip_torch")},
    }


@contextmanager
def peaks(own: bool = False) -> Iterator[dict[str, float]]:
    """What `memory` says at most while inside; filled in as processes are seen."""
    found: dict[str, float] = {}
    end = threading.Event()
    looking = threading.Thread(target=_look, args=(found, own, end), daemon=True)
    looking.start()
    try:
        yield found
    finally:
        end.set()
        looking.join()


def _look(found: dict[str, float], own: bool, end: threading.Event) -> None:
    while not end.wait(_EVERY):
        for name, size in memory(own).items():
            found[name] = max(found.get(name, 0.0), size)


def memory(own: bool = False) -> dict[str, float]:
    """Resident MiB now, of this process and of the largest of each kind of process it started; `own`
    without what it shares with others (the object store, mapped files), as far as the system tells."""
    import psutil

    def size_of(process: Any) -> float:
        held = process.memory_info()
        return float(held.rss - (getattr(held, "shared", 0) if own else 0))

    here = psutil.Process()
    sizes: dict[str, float] = {"this process": size_of(here)}
    for process in here.children(recursive=True):
        try:
            name, size = _kind(process.cmdline()), size_of(process)
        except psutil.Error:  # it has ended meanwhile
            continue
        sizes[name] = max(sizes.get(name, 0.0), size)
    return {name: round(size / 2**20, 1) for name, size in sizes.items()}


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
