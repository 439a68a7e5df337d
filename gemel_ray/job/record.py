"""The record of a run's progress: DIR/progress.json, rewritten every few seconds.

One JSON object: how much is done, the pace, what failed and why, where the time goes, what each worker does.
The same figures are Prometheus metrics, and the source of the report (job/page.py).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypedDict

from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.results import WORKERS
from gemel_ray.job.selection import Done
from gemel_ray.knowledge.remote import Shared
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.pictures.limits import FILTERED
from gemel_ray.progress import Progress
from gemel_ray.stage import Measures
from gemel_ray.storage import Folder, LocalFolder, Place, folder_at

_EVERY, _EVERY_REMOTE = 2.0, 10.0  # seconds between two writes or reads, on a disk and in an object store
_AT_ONCE = 16  # files of workers that are read at the same time
_MOMENTS = 400  # points of the timeline; beyond that, every second one is dropped


class ErrorExample(TypedDict):
    """A row with an error, as an example of its kind."""

    document_id: str
    source: str
    mention: str | None
    error: str


class BatchCounts(TypedDict):
    """The counts of a batch's rows; `errors`: by kind, the number and an example."""

    part: str
    documents: int
    statuses: dict[str, int]
    errors: dict[str, tuple[int, ErrorExample]]


class WorkerPlace(TypedDict):
    """Where a worker runs, and how much memory it took."""

    node: str
    gpus: list[str]  # as Ray numbers them on the node
    peak_mib: int


class WorkerMeasures(WorkerPlace):
    """What a worker writes of itself."""

    measures: Measures


class ErrorKind(TypedDict):
    """Errors of one kind, with examples."""

    kind: str
    rows: int
    examples: list[ErrorExample]


class ProgressFile(TypedDict):
    """The content of progress.json."""

    state: str
    why: str
    started: str
    seconds: float
    documents: dict[str, int | None]
    rows: int
    statuses: dict[str, int]
    errors: list[ErrorKind]
    rows_per_second: float | None
    seconds_left: int | None
    stage_shares: dict[str, float]
    prompt_tokens: dict[str, int]
    measures: Measures
    workers: dict[str, WorkerPlace]
    timeline: list[tuple[float, int, int]]


class UsedWorkspace(TypedDict):
    """The workspace with which a job linked."""

    path: str
    knowledge: str
    version: str
    models: dict[str, str]


class Manifest(results.Counts, total=False):
    """The content of manifest.json; empty if the job has not finished."""

    inputs: list[str]
    seconds: float
    measures: Measures
    workspace: UsedWorkspace
    configuration: dict[str, Any]
    versions: dict[str, str]


def summed(parts: Sequence[Mapping[str, Any]]) -> Measures:
    """The sums of nested numbers."""
    total: Measures = {}
    for part in parts:
        for name, value in part.items():
            nested = isinstance(value, Mapping)
            total[name] = summed([total.get(name, {}), value]) if nested else total.get(name, 0) + value
    return total


class Record:
    """The record of one run since `began`, or now. `total`: documents to do, 0 where it is not known."""

    def __init__(self, output: Place, total: int, before: int, began: float | None = None) -> None:
        self.output, self.total = folder_at(output), total
        self.every = _EVERY if isinstance(self.output, LocalFolder) else _EVERY_REMOTE
        self.metrics: Metrics | None = None
        self.began, self.written = began or time.time(), 0.0
        self.before, self.documents, self.rows = before, 0, 0
        self.statuses, self.errors = Counter[str](), Counter[str]()
        self.examples: dict[str, list[ErrorExample]] = {}
        self.timeline: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # seconds, rows, errors
        self.step = self.every

    def add(self, batch: BatchCounts) -> None:
        """Count a batch (see `counted`); write the file, if that is due."""
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
        """Error rows, except the filtered."""
        filtered = sum(n for reason, n in self.errors.items() if reason.startswith(FILTERED))
        return self.statuses["error"] - filtered

    def write(self, state: str, why: str = "") -> ProgressFile:
        """Rewrite the file; its content. `state`: running, finished or stopped."""
        self.written = time.time()
        passed = self.written - self.began
        if passed - self.timeline[-1][0] >= self.step or state != "running":
            self.timeline.append((round(passed, 1), self.rows, self.statuses["error"]))
        if len(self.timeline) > _MOMENTS:
            self.timeline, self.step = self.timeline[::2], 2 * self.step
        content = self._content(state, why, passed)
        if self.metrics:
            self.metrics.show(content)
        self.output.write("progress.json", json.dumps(content, indent=1).encode())
        return content

    def _content(self, state: str, why: str, passed: float) -> ProgressFile:
        workers = self.workers()
        measures = summed([w["measures"] for w in workers.values()])
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
            "workers": {
                name: {"node": w["node"], "gpus": w["gpus"], "peak_mib": w["peak_mib"]}
                for name, w in workers.items()
            },
            "timeline": self.timeline,
        }

    def workers(self) -> dict[str, WorkerMeasures]:
        """What each worker of this run wrote last, dead ones included."""
        names = [name for name in self.output.names(WORKERS) if name.endswith(".json")]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            texts = list(threads.map(self.output.read, names))
        return {PurePosixPath(n).stem: json.loads(text) for n, text in zip(names, texts, strict=True)}


# The record as Prometheus metrics, on every Ray node's metrics port (deploy/monitoring reads them there).


# Name: description and tag. Ray puts ray_ in front.
METRICS = {
    "gemel_ray_job_documents": ("documents of this run, by state", "state"),
    "gemel_ray_job_rows": ("rows written by this run, by status", "status"),
    "gemel_ray_job_errors": ("rows that failed, by kind", "kind"),
    "gemel_ray_job_prompt_tokens": ("of the engines, asked for and found cached", "kind"),
    "gemel_ray_job_stage_share": ("of the time documents spend in stages", "stage"),
    "gemel_ray_job_seconds_left": ("until the run is done, at its pace so far", "of"),
}


class Gauge(Protocol):
    """What offline.py passes: ray.util.metrics.Gauge."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Metrics:
    """The gauges. `gauge` makes one from a name, a description and the names of its tags."""

    def __init__(self, gauge: Any) -> None:
        self._made: dict[str, tuple[Gauge, str]] = {
            name: (gauge(name, about, (tag,)), tag) for name, (about, tag) in METRICS.items()
        }

    def show(self, record: ProgressFile) -> None:
        """Set the gauges to the record's values."""
        values: list[Mapping[str, Any]] = [
            record["documents"],
            record["statuses"],
            {entry["kind"][:120]: entry["rows"] for entry in record["errors"][:20]},
            record["prompt_tokens"],
            record["stage_shares"],
            {"run": record["seconds_left"]},
        ]
        for (gauge, tag), by_label in zip(self._made.values(), values, strict=True):
            for label, value in by_label.items():
                if value is not None:
                    ascii_label = label.encode("ascii", "replace").decode()  # Ray takes nothing else
                    gauge.set(float(value), {tag: ascii_label})


# Warnings of workers, as that one waits for a server, reach the driver through the output folder.


_SOURCE = logging.getLogger("gemel_ray.knowledge")


class _WarningSender(logging.Handler):
    def __init__(self, output: Folder, run: str) -> None:
        super().__init__(logging.WARNING)
        self.output, self.run = output, run

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk: the work itself will report it
            name = f"{_prefix(self.run)}{time.time_ns()}-{os.getpid()}"
            self.output.write(name, record.getMessage().encode())


def send_warnings(output: Folder, run: str) -> None:
    """In a worker: send this process's warnings to the driver from now on."""
    _SOURCE.addHandler(_WarningSender(output, run))


def report_retried(retry: str | None, done: Done, report: Callable[[Progress], None]) -> None:
    """Report how many failed documents are retried, where `retry` is given."""
    if retry is not None:
        report(Progress(0, {}, f"{done.retried:,} failed documents: those that INPUT holds are done again"))


@contextmanager
def receive_warnings(output: Folder, run: str, report: Callable[[Progress], None]) -> Iterator[None]:
    """In the driver, during a run: report its workers' warnings; one that several send is reported once."""
    ended = threading.Event()
    every = _EVERY if isinstance(output, LocalFolder) else _EVERY_REMOTE
    thread = threading.Thread(target=_forward, args=(output, run, report, ended, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _forward(
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


# DIR/manifest.json: what is in the output folder, and what made it.


_PACKAGES = ("gemel-ray", "ray", "torch", "transformers", "open_clip_torch", "qdrant-edge-py")


def write_manifest(
    config: Config, workspace: Path, inputs: Sequence[str], record: Record, knowledge: str
) -> Manifest:
    """Write it and return it: counts over the whole output, the last run's measures and seconds."""
    done = record.write("finished")
    facts = read_facts(workspace, knowledge)
    manifest: Manifest = {
        **results.counts(record.output),
        "inputs": list(inputs),
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
    record.output.write("manifest.json", json.dumps(manifest, indent=2).encode())
    return manifest


def read_manifest(output: Place) -> Manifest | None:
    """The manifest of a job; None if it has not finished."""
    try:
        manifest: Manifest = json.loads(folder_at(output).read("manifest.json"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None
