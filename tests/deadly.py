"""A job whose one stage does to its worker what its texts say: real processes that really die, without the
cost of a language model. As a command: python tests/deadly.py INPUT OUTPUT runs it to its end.

Texts: "sleep" (takes a while, so that it can be killed meanwhile), "dies" (its worker is killed, always),
"full" (out of memory unless alone), "bursts" (out of memory even alone), "breaks" (the stage can work no
more, as when an engine dies), "fails" (its own fault). All other texts are answered at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa

from gemel_ray import offline
from gemel_ray.config import Config
from gemel_ray.graph import Graph
from gemel_ray.job import results
from gemel_ray.job.driving import faults_as_stopped
from gemel_ray.job.index import finished
from gemel_ray.job.record import Record
from gemel_ray.job.selection import Filters, Selection
from gemel_ray.job.worker import Attempts, Worker, with_source_column
from gemel_ray.records import DOCUMENT, LINK
from gemel_ray.segments import SegmentOptions
from gemel_ray.stage import Stage, Work, answer
from gemel_ray.storage import Folder, folder_at

_ANSWER = [f for f in LINK if f.name not in ("document_id", "error", "fingerprint", "status")]


@dataclass(frozen=True, kw_only=True)
class Deadly(Stage):
    reads: ClassVar = ("document_id", "text")
    writes: ClassVar = pa.schema(_ANSWER)
    starts: bool = True

    def start(self, workspace: Any, line: Any = ()) -> Work:
        if not self.starts:
            raise ValueError("there is no such model")
        return _Dying(self)


_STAGE = Deadly()


class _Dying(Work):
    def __init__(self, stage: Deadly) -> None:
        self.stage, self.broken = stage, False

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("the engine is dead")

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = batch["text"].to_pylist()
        if "dies" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "bursts" in texts or ("full" in texts and len(texts) > 1):
            raise MemoryError("4 GiB asked for")
        if "breaks" in texts or self.broken:
            self.broken = True
            raise ValueError("no answer")
        if "fails" in texts:
            raise KeyError("a fault of the stage")
        time.sleep(0.002 * texts.count("sleep"))
        columns: dict[str, Any] = {name: [None] * len(batch) for name in self.stage.writes.names}
        columns["entity"] = [f"entity of {identity}" for identity in batch["document_id"].to_pylist()]
        table = answer(self.stage.writes, columns)
        return table.append_column("status", pa.array(["linked"] * len(batch)))


@dataclass(frozen=True)
class Opening:
    """What offline.dataset asks of its own."""

    config: Config
    output: Folder
    run: str
    stage: Deadly
    fingerprint: str = "deadly"

    @property
    def line(self) -> Graph:
        return Graph((self.stage,), DOCUMENT, LINK, self.fingerprint)

    def worker(self, stages: Any) -> Worker:
        segment = with_source_column(self.line).segment(["deadly"], None)  # type: ignore[arg-type]
        return Worker(segment, Attempts(self.output, "deadly"), self.run, self.output)


def configured(address: str = "local") -> Config:
    segment = SegmentOptions(stages=("deadly",), workers=2, batch=32, cpus=0.5)
    return replace(Config(), offline=replace(Config().offline, segments=(segment,), address=address))


def job(config: Config, address: str, place: str, stage: Deadly = _STAGE) -> Iterator[int]:
    """Do what is missing, on the Ray of this process. Yields how many documents each batch had."""
    output = folder_at(place)
    run = results.prepare(output)
    opening: Any = Opening(config, output, run, stage)
    with faults_as_stopped(Record(output, 0, 0), run):
        data = offline.dataset(opening, Selection().of([address]), finished(output), Filters(config.input))
        yield from (counts["documents"] for counts in offline.counted(data))


def main(address: str, place: str) -> None:
    config = configured(os.environ.get("CLUSTER", "local"))
    with offline.running(config):
        for documents in job(config, address, place):
            print(documents, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
