"""What a run knows of itself while it goes: DIR/progress.json, rewritten every few seconds.

One JSON object: how far it is, at what pace, what failed and why, where the time goes, what each worker
does. The same figures are Prometheus metrics, and the report's source (job/page.py).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.index import Done, plain
from gemel_ray.job.layout import part_of
from gemel_ray.job.results import SOURCE, WORKERS, kind
from gemel_ray.job.selection import FILTERED
from gemel_ray.knowledge.bringing import Shared
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.progress import Progress
from gemel_ray.storage import Folder, LocalFolder, Place, folder_at

_EVERY, _EVERY_REMOTE = 2.0, 10.0  # seconds between two records, on a disk and in an object store
_AT_ONCE = 16  # of the workers' files read
_MOMENTS = 400  # of the timeline; then every second one is left out
Measures = dict[str, Any]


def told(output: Folder, name: str, node: str, measures: Measures) -> None:
    """Of a worker: the Ray node it runs on, its measures since it started, and its memory's peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
    said = {"node": node, "peak_mib": round(peak), "measures": measures}
    output.write(f"{WORKERS}/{name}.json", json.dumps(said).encode())


def summed(parts: Sequence[Mapping[str, Any]]) -> Measures:
    """Nested numbers, added up."""
    total: Measures = {}
    for part in parts:
        for name, value in part.items():
            nested = isinstance(value, Mapping)
            total[name] = summed([total.get(name, {}), value]) if nested else total.get(name, 0) + value
    return total


def counted(rows: pa.Table, run: str | None = None) -> dict[str, Any]:
    """What a batch's rows add: the run's part, documents, statuses, and errors by kind, with the first of
    each."""
    sources = list(dict.fromkeys(rows[SOURCE].to_pylist()))
    errors: dict[str, list[Any]] = {}
    for row in rows.select(["document_id", "source", "mention", "error"]).to_pylist():
        if row["error"]:
            row["source"] = plain(row["source"])
            errors.setdefault(kind(row["error"]), [0, row])[0] += 1
    return {
        "part": part_of(run, sources),
        "documents": len(sources),
        "statuses": Counter(rows["status"].to_pylist()),
        "errors": errors,
    }


class Record:
    """One run's, since `began`, or now. `total`: documents to do, 0 where it is not known."""

    def __init__(self, output: Place, total: int, before: int, began: float | None = None) -> None:
        self.output, self.total = folder_at(output), total
        self.every = _EVERY if isinstance(self.output, LocalFolder) else _EVERY_REMOTE
        self.metrics: Metrics | None = None
        self.began, self.written = began or time.time(), 0.0
        self.before, self.documents, self.rows = before, 0, 0
        self.statuses, self.errors = Counter[str](), Counter[str]()
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.timeline: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # seconds, rows, errors
        self.step = self.every

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch (see `counted`), and write, if the last writing is some time ago."""
        self.documents += batch["documents"]
        self.statuses.update(batch["statuses"])
        self.rows = sum(self.statuses.values())
        for reason, (number, example) in batch["errors"].items():
            self.errors[reason] += number
            some = self.examples.setdefault(reason, [])
            if len(some) < 3:
                some.append(example)
        if time.time() - self.written > self.every:
            self.write("running")

    @property
    def failures(self) -> int:
        """Rows that are errors, but for the filtered."""
        filtered = sum(n for reason, n in self.errors.items() if reason.startswith(FILTERED))
        return self.statuses["error"] - filtered

    def write(self, state: str, why: str = "") -> dict[str, Any]:
        """Rewrite the file; what it says. `state`: running, finished or stopped."""
        self.written = time.time()
        passed = self.written - self.began
        if passed - self.timeline[-1][0] >= self.step or state != "running":
            self.timeline.append((round(passed, 1), self.rows, self.statuses["error"]))
        if len(self.timeline) > _MOMENTS:
            self.timeline, self.step = self.timeline[::2], 2 * self.step
        plain = self._plain(state, why, passed)
        if self.metrics:
            self.metrics.show(plain)
        self.output.write("progress.json", json.dumps(plain, indent=1).encode())
        return plain

    def _plain(self, state: str, why: str, passed: float) -> dict[str, Any]:
        told = self.workers()
        measures = summed([w["measures"] for w in told.values()])
        seconds = measures.get("seconds", {})
        whole = sum(seconds.values()) or 1.0
        engine = measures.get("generate", {})
        pace = self.documents / passed if passed else 0.0
        left = max(0, self.total - self.documents) if self.total else None
        return {
            "state": state,
            "why": why,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(passed, 1),
            "documents": {"total": self.total or None, "done": self.documents, "done_before": self.before},
            "rows": self.rows,
            "statuses": dict(sorted(self.statuses.items())),
            "errors": [
                {"kind": reason, "rows": number, "examples": self.examples[reason]}
                for reason, number in self.errors.most_common(50)
            ],
            "rows_per_second": round(self.rows / passed, 3) if passed else None,
            "seconds_left": round(left / pace) if left is not None and pace else None,
            "stage_shares": {name: round(value / whole, 4) for name, value in seconds.items()},
            "prompt_tokens": {k: engine[k] for k in ("asked", "cached") if k in engine},
            "measures": measures,
            "workers": {n: {k: w[k] for k in ("node", "peak_mib")} for n, w in told.items()},
            "timeline": self.timeline,
        }

    def workers(self) -> dict[str, dict[str, Any]]:
        """What each worker of this run, dead ones included, told last."""
        names = [name for name in self.output.names(WORKERS) if name.endswith(".json")]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            said = list(threads.map(self.output.read, names))
        return {PurePosixPath(n).stem: json.loads(text) for n, text in zip(names, said, strict=True)}


# The record as Prometheus metrics, on every Ray node's metrics port (deploy/monitoring reads them there).


# Name: what it means, and its tag. Ray puts ray_ in front.
METRICS = {
    "gemel_ray_job_documents": ("documents of this run, by state", "state"),
    "gemel_ray_job_rows": ("rows written by this run, by status", "status"),
    "gemel_ray_job_errors": ("rows that failed, by kind", "kind"),
    "gemel_ray_job_prompt_tokens": ("of the engines, asked for and found cached", "kind"),
    "gemel_ray_job_stage_share": ("of the time documents spend in stages", "stage"),
    "gemel_ray_job_seconds_left": ("until the run is done, at its pace so far", "of"),
}


class Gauge(Protocol):
    """ray.util.metrics.Gauge, as offline.py gives it."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Metrics:
    """`gauge` makes one of a name, what it means, and its tags' names."""

    def __init__(self, gauge: Any) -> None:
        self._made: dict[str, tuple[Gauge, str]] = {
            name: (gauge(name, about, (tag,)), tag) for name, (about, tag) in METRICS.items()
        }

    def show(self, record: Mapping[str, Any]) -> None:
        """What the record says now."""
        values: list[Mapping[str, Any]] = [
            record["documents"],
            record["statuses"],
            {entry["kind"][:120]: entry["rows"] for entry in record["errors"][:20]},
            record["prompt_tokens"],
            record["stage_shares"],
            {"run": record["seconds_left"]},
        ]
        for (gauge, tag), told in zip(self._made.values(), values, strict=True):
            for label, value in told.items():
                if value is not None:
                    plain = label.encode("ascii", "replace").decode()  # Ray takes nothing else
                    gauge.set(float(value), {tag: plain})


# What is said while no rows come. Of workers, as that a server is waited for: the output brings it to the
# driver.


_EVERY, _EVERY_REMOTE = 2.0, 10.0  # seconds between two looks, on a disk and in an object store
_SOURCE = logging.getLogger("gemel_ray.knowledge")


class _Saying(logging.Handler):
    def __init__(self, output: Folder, run: str) -> None:
        super().__init__(logging.WARNING)
        self.output, self.run = output, run

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk: the work itself will say so
            name = f"{_prefix(self.run)}{time.time_ns()}-{os.getpid()}"
            self.output.write(name, record.getMessage().encode())


def say(output: Folder, run: str) -> None:
    """In a worker: whatever this process warns of from now on is brought to the driver."""
    _SOURCE.addHandler(_Saying(output, run))


def retried(retry: str | None, done: Done, report: Callable[[Progress], None]) -> None:
    """How many documents that failed are to be done again, where that is asked for."""
    if retry is not None:
        report(Progress(0, {}, f"{done.asked:,} failed documents: those that INPUT holds are done again"))


@contextmanager
def heard(output: Folder, run: str, report: Callable[[Progress], None]) -> Iterator[None]:
    """In the driver, while a run goes on: what its workers say is reported, once when many say the same."""
    ended = threading.Event()
    every = _EVERY if isinstance(output, LocalFolder) else _EVERY_REMOTE
    thread = threading.Thread(target=_listen, args=(output, run, report, ended, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _listen(
    output: Folder, run: str, report: Callable[[Progress], None], ended: threading.Event, every: float
) -> None:
    read: set[str] = set()
    last = ""
    while not ended.wait(every):
        with suppress(OSError):
            for name in output.names(WORKERS):
                if name.startswith(_prefix(run)) and name not in read:
                    words = output.read(name).decode()
                    read.add(name)
                    if words != last:
                        report(Progress(0, {}, words))
                    last = words


def _prefix(run: str) -> str:
    return f"{WORKERS}/said-{run}-"


# DIR/manifest.json: what stands in the output folder, and what made it.


_PACKAGES = ("gemel-ray", "ray", "torch", "transformers", "open_clip_torch", "qdrant-edge-py")


def write_manifest(
    config: Config, workspace: Path, inputs: Sequence[str], told: Record, knowledge: str
) -> dict[str, Any]:
    """Write it and return it: counts over the whole output, the last run's measures and seconds."""
    done = told.write("finished")
    facts = read_facts(workspace, knowledge)
    manifest = {
        "inputs": list(inputs),
        **results.counts(told.output),
        "seconds": done["seconds"],
        "measures": done["measures"],
        "workspace": {
            "path": str(Shared.of(workspace)),
            "knowledge": knowledge,
            "version": facts["version"],
            "models": facts["models"],
        },
        "configuration": config.plain(),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    told.output.write("manifest.json", json.dumps(manifest, indent=2).encode())
    return manifest


def read_manifest(output: Place) -> dict[str, Any]:
    """What a job says of itself; nothing where it has not finished."""
    try:
        said = json.loads(folder_at(output).read("manifest.json"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
