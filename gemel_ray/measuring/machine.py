"""The machine on which figures were measured, and the memory and processor time of its processes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypedDict

from gemel_ray.environment import cores

_EVERY = 0.5  # seconds between two looks


Figures = Mapping[str, object]  # the figures of a measurement by name, nested, ready for JSON


class Spread(TypedDict):
    """A figure that was measured several times."""

    median: float
    min: float
    max: float


class Machine(TypedDict):
    """The properties of a machine, and the versions of what ran on it."""

    cores: int
    memory_gib: float
    processor: str
    commit: str | None
    gpus: list[str]
    python: str
    versions: dict[str, str]


def machine() -> Machine:
    """The properties of the machine on which the figures depend."""
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
    """The commit of the checkout from which this package runs, if it does."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


@dataclass(frozen=True)
class Look:
    """This process and those it started, by kind: MiB of the largest of a kind, resident, and private:
    without memory shared with others (the object store, mapped files); processor seconds of all of a kind so
    far."""

    at: float
    resident: dict[str, float]
    private: dict[str, float]
    processor: dict[str, float]


@contextmanager
def looks() -> Iterator[list[Look]]:
    """A list to which a look is added twice a second while inside."""
    seen: list[Look] = []
    end, spent = threading.Event(), dict[int, tuple[str, float]]()

    def watch() -> None:
        while not end.wait(_EVERY):
            seen.append(look(spent))

    looking = threading.Thread(target=watch, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        end.set()
        looking.join()


def look(spent: dict[int, tuple[str, float]] | None = None) -> Look:
    """The processes at this moment. `spent`: kind and processor seconds by process, of former looks and this
    one, so that the time of processes that have ended counts, too."""
    import psutil

    now, spent = Look(time.perf_counter(), {}, {}, {}), {} if spent is None else spent
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            with process.oneshot():
                name = "this process" if process == here else _kind(process.cmdline())
                memory, times = process.memory_info(), process.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        shared = getattr(memory, "shared", 0)  # not on all systems
        for sizes, size in ((now.resident, memory.rss), (now.private, memory.rss - shared)):
            sizes[name] = max(sizes.get(name, 0.0), round(size / 2**20, 1))
        spent[process.pid] = name, times.user + times.system
    for name, seconds in spent.values():
        now.processor[name] = now.processor.get(name, 0.0) + seconds
    return now


def peaks(sizes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The greatest size of each kind of process."""
    most: dict[str, float] = {}
    for some in sizes:
        for name, size in some.items():
            most[name] = max(most.get(name, 0.0), size)
    return most


def _kind(command: Sequence[str]) -> str:
    """The kind of a process: Ray's by their titles, ray::MapBatches(_Worker), without the method that runs
    at the moment; others by the program's name."""
    first = command[0] if command else "?"
    if first.startswith("ray::"):
        return re.sub(r"\.\w+$", "", first.split()[0])
    names = [os.path.basename(c) for c in command[:3] if c.endswith(".py")]
    return names[0] if names else os.path.basename(first.split()[0])


def spread(figures: Sequence[float]) -> Spread:
    """The median, the least and the greatest of several measurements."""
    return {"median": round(median(figures), 4), "min": round(min(figures), 4), "max": round(max(figures), 4)}
