"""What a run knows of itself while it goes: DIR/progress.json, rewritten every few seconds.

One JSON object: how far it is, at what pace, what failed and why, where the time goes, what each worker
does. The same figures are Prometheus metrics (job/metrics.py), and the report's source (job/page.py).
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from gemel_ray.job.filters import FILTERED
from gemel_ray.job.identity import plain
from gemel_ray.job.layout import part_of
from gemel_ray.job.metrics import Metrics
from gemel_ray.job.reasons import kind
from gemel_ray.job.results import SOURCE, WORKERS
from gemel_ray.object_folder import Place, folder_at
from gemel_ray.storage import Folder, LocalFolder

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
    """One run's. `total`: documents to do, 0 where it is not known."""

    def __init__(self, output: Place, total: int, before: int) -> None:
        self.output, self.total = folder_at(output), total
        self.every = _EVERY if isinstance(self.output, LocalFolder) else _EVERY_REMOTE
        self.metrics: Metrics | None = None
        self.began, self.written = time.time(), 0.0
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
