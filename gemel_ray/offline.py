"""The graph as a Ray Data job: files to Parquet, resumable.

    read (tasks, one a file) -> segment -> ... -> last segment, which writes its own results

Every worker starts its segment's stages once and takes several batches at a time, so the engine is
fed across batches. The last segment's worker writes each batch as one file under a name made from
its documents, first aside and then renamed: a batch that Ray runs twice is written once, and what
stands in the output is whole. Run again, the job reads which documents are there and does the rest.
Only this file and online.py import ray.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.config import Config, SegmentOptions
from gemel_ray.graph import Segment
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents

Keys = npt.NDArray[np.uint64]
_BLOCK_DOCUMENTS = 512


@dataclass(frozen=True)
class Progress:
    """What one written batch adds: rows by status, and the workers' measures so far."""

    documents: int
    statuses: dict[str, int]


def link(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, report: Callable[[Progress], None]
) -> dict[str, Any]:
    """Link all documents of `inputs` that `output` does not hold yet; returns the manifest.

    Raises whatever stops the job: a fault of a stage, or of the cluster. Rows' own errors are rows.
    """
    import ray

    started = time.time()
    links = output / "links"
    links.mkdir(parents=True, exist_ok=True)
    for aside in links.glob(".*"):  # what a killed run was writing
        aside.unlink()
    done = finished_documents(links)
    _connect(config)
    measures: dict[str, dict[str, Any]] = {}
    with _Session(ray):
        for written in _dataset(config, workspace, inputs, links, done).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in written.to_pylist():
                measures[row["worker"]] = json.loads(row["measures"])
                report(Progress(row["documents"], json.loads(row["statuses"])))
    manifest = _manifest(config, workspace, inputs, links, started, list(measures.values()))
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return manifest


class _Session:
    """Ray is left when the job ends, however it ends."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()


def _connect(config: Config) -> None:
    import ray

    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    address = config.offline.address
    local: dict[str, Any] = {
        "num_cpus": max(os.cpu_count() or 1, _cpus(config) + 1),
        "include_dashboard": False,
    }
    ray.init(
        address=None if address == "local" else address,
        log_to_driver=False,
        logging_level="ERROR",
        **(local if address == "local" else {}),
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = int(config.offline.stall_minutes * 60)


def _cpus(config: Config) -> int:
    return int(np.ceil(sum(s.workers * s.cpus for s in config.offline.segments)))


def _dataset(config: Config, workspace: Path, inputs: Sequence[str], links: Path, done: Keys) -> Any:
    import ray

    skip = ray.put(done)
    dataset = ray.data.from_items([{"address": a} for a in inputs], override_num_blocks=len(inputs))
    dataset = dataset.map_batches(
        _read,
        batch_size=1,
        fn_kwargs={"done": skip, "fetch": config.input.fetch_official_images},
        num_cpus=0.5,
    )
    dataset = dataset.repartition(target_num_rows_per_block=_BLOCK_DOCUMENTS)
    segments = config.offline.segments
    for number, options in enumerate(segments):
        last = number == len(segments) - 1
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(config, str(workspace), options, str(links) if last else None),
            batch_size=options.batch,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=options.workers, max_tasks_in_flight_per_actor=max(2, options.overlap)
            ),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            max_concurrency=max(2, options.overlap),
            runtime_env={"env_vars": _environment(options)},
        )
    return dataset


def _environment(options: SegmentOptions) -> dict[str, str]:
    """Ray gives a worker one thread unless told; the engine's other settings are its own."""
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    return {"OMP_NUM_THREADS": str(threads)}


def _read(batch: dict[str, Any], done: Any, fetch: bool) -> Iterator[pa.Table]:
    """Documents of one file that are not done yet."""
    for address in batch["address"]:
        for table in documents(str(address), fetch_official_images=fetch):
            new = ~np.isin(_keys(table["document_id"].to_pylist()), done)
            if new.any():
                yield table.filter(pa.array(new))


class _Worker:
    """A segment of the graph in a Ray actor. The last one writes, and returns only what it counted."""

    def __init__(self, config: Config, workspace: str, options: SegmentOptions, links: str | None) -> None:
        opened = Workspace.open(Path(workspace), config)
        self.segment: Segment = linking_graph(config, opened).segment(options.stages, opened)
        self.links = Path(links) if links else None
        self.name = f"{'+'.join(options.stages)}-{os.getpid()}-{time.time_ns()}"

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        result = await self.segment.run(batch)
        if self.links is None:
            yield result
            return
        write(result, self.links)
        yield pa.Table.from_pylist(
            [
                {
                    "worker": self.name,
                    "documents": len(set(result["document_id"].to_pylist())),
                    "statuses": json.dumps(Counter(result["status"].to_pylist())),
                    "measures": json.dumps(self.segment.measures()),
                }
            ]
        )

    def __del__(self) -> None:
        if hasattr(self, "segment"):
            self.segment.close()


def write(result: pa.Table, links: Path) -> Path:
    """One file a batch, whole or not there; the same rows always under the same name."""
    names = zip(result["document_id"].to_pylist(), result["mention_id"].to_pylist(), strict=True)
    digest = hashlib.blake2b(repr(list(names)).encode(), digest_size=12).hexdigest()
    path = links / f"{digest}.parquet"
    aside = links / f".{digest}-{os.getpid()}"
    pq.write_table(result, aside, compression="zstd")
    aside.replace(path)
    return path


def finished_documents(links: Path) -> Keys:
    """Sorted hashes of the documents in the output: 8 bytes each."""
    found = [
        _keys(pq.read_table(file, columns=["document_id"])["document_id"].unique().to_pylist())
        for file in sorted(links.glob("*.parquet"))
    ]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def _keys(ids: Sequence[str]) -> Keys:
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.uint64)


def _manifest(
    config: Config, workspace: Path, inputs: Sequence[str], links: Path, started: float, measures: list[Any]
) -> dict[str, Any]:
    """Counts over the whole output, and what this run cost."""
    from importlib.metadata import version

    statuses: Counter[str] = Counter()
    documents_out = 0
    for file in links.glob("*.parquet"):
        table = pq.read_table(file, columns=["document_id", "status"])
        statuses.update(table["status"].to_pylist())
        documents_out += len(table["document_id"].unique())
    facts = json.loads((workspace / "workspace.json").read_text())
    return {
        "inputs": list(inputs),
        "documents": documents_out,
        "rows": sum(statuses.values()),
        "statuses": dict(statuses),
        "seconds": round(time.time() - started, 2),
        "measures": _summed(measures),
        "workspace": {"path": str(workspace), "version": facts["version"], "models": facts["models"]},
        "configuration": config.plain(),
        "segments": [asdict(s) for s in config.offline.segments],
        "versions": {
            p: version(p) for p in ("ray", "torch", "transformers", "open_clip_torch", "qdrant-edge-py")
        },
    }


def _summed(parts: Sequence[Any]) -> Any:
    """Nested numbers of all workers, added up."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                total[name] = _summed([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total
