"""The whole graph with real parts: in process and as a Ray Data job the same rows, bad ones included."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from parity import same_row

from gemel_ray.config import Config
from gemel_ray.graph import run_in_process
from gemel_ray.job import results
from gemel_ray.job.driving import Compute, Job, drive, in_this_process
from gemel_ray.job.worker import with_source_column
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.offline import link
from gemel_ray.progress import Progress
from gemel_ray.readers import documents
from gemel_ray.segments import SegmentOptions

pytestmark = [pytest.mark.slow, pytest.mark.ray]
Rows = dict[tuple[str, str], dict[str, Any]]


def keyed(tables: list[pa.Table]) -> Rows:
    rows = [row for table in tables for row in table.to_pylist()]
    by_key = {(r["document_id"], r["mention_id"]): r for r in rows}
    assert len(by_key) == len(rows), "a row is there twice"
    return by_key


@pytest.fixture(scope="module")
def in_process(workspace: Workspace, config: Config, generating: Any, messy_inputs: list[str]) -> Rows:
    """The graph in this process: all stages in one segment, batches of 5 documents."""
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names, workspace, {"generate": generating})  # the tests' one engine
    batches = (table for file in messy_inputs for table in documents(file, batch=5))
    found = keyed(list(run_in_process(segment, batches)))
    segment.close()
    return found


@pytest.fixture(scope="module")
def on_ray(
    workspace_folder: Path, config: Config, messy_inputs: list[str], tmp_path_factory: Any
) -> tuple[Path, Config]:
    """The same as a job of two segments in two kinds of worker, batches of 7."""
    segments = (
        SegmentOptions(stages=("detect", "encode"), batch=7, threads=1),
        SegmentOptions(stages=("retrieve", "assemble", "generate"), batch=7, threads=os.cpu_count() or 1),
    )
    cut = replace(config, offline=replace(config.offline, segments=segments))
    output = tmp_path_factory.mktemp("job") / "out"
    told: list[Progress] = []
    manifest = link(cut, workspace_folder, messy_inputs, output, told.append)
    assert manifest["workspace"]["knowledge"] == "0"
    assert manifest["rows"] == sum(sum(p.statuses.values()) for p in told)
    return output, cut


def test_ray_data_gives_the_same_rows_as_one_process(in_process: Rows, on_ray: tuple[Path, Config]) -> None:
    job = keyed(list(results.tables(on_ray[0])))
    assert job.keys() == in_process.keys()
    for key, here in in_process.items():
        same_row(job[key], here)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("broken", "broken.jpg"),
        ("words", "words.jpg"),
        ("bomb", "bomb.png"),
        ("missing", "nowhere.jpg"),
        ("empty", "the text is empty"),
        ("messy.jsonl:15", "line 15 is not JSON"),
        ("messy.jsonl:16", "line 16 is not a JSON object"),
        ("truncated.parquet", "truncated.parquet"),
    ],
)
def test_bad_rows_are_told_apart(in_process: Rows, document: str, says: str) -> None:
    rows = [row for (name, _), row in in_process.items() if name == document]
    assert rows
    for row in rows:
        assert row["status"] == "error"
        assert says in row["error"]
        assert row["entity"] is None


def test_a_bad_mention_leaves_the_others_of_its_document_alone(in_process: Rows) -> None:
    assert "outside its text of 30 characters" in in_process["outside", "25-400"]["error"]
    assert in_process["outside", "0-5"]["status"] == "linked"


def test_mentions_are_found_in_documents_that_give_none(in_process: Rows) -> None:
    assert in_process["found", "0-5"]["mention"] == "Adobe"
    assert in_process["found", "10-16"]["mention"] == "Google"
    assert in_process["none-found", None]["status"] == "nil"  # type: ignore[index]


def test_good_rows_are_linked_to_names_of_the_knowledge_base(in_process: Rows, workspace: Workspace) -> None:
    names = set(workspace.entities.names())
    linked = [row for row in in_process.values() if row["status"] == "linked"]
    assert {"plain", "no-picture", "moving", "official", "long"} <= {row["document_id"] for row in linked}
    for row in linked:
        assert row["entity"] in names
        assert len(row["candidates"]) == 5
        assert {c["entity"] for c in row["candidates"]} <= names
        assert 0 < row["probability"] <= 1
        assert len(row["demonstrations"]) == 4
        assert len(row["fingerprint"]) == 16


def test_an_interrupted_job_does_exactly_what_is_missing(
    on_ray: tuple[Path, Config], workspace: Workspace, generating: Any, messy_inputs: list[str]
) -> None:
    """Begun on Ray, ended in this process with the tests' one engine; on Ray: test_job_away.py."""
    output, config = on_ray
    before = keyed(list(results.tables(output)))
    lost = next(
        file
        for file in sorted((output / "links").glob("*.parquet"))
        if any(s == "linked" for s in pa.parquet.read_table(file)["status"].to_pylist())
    )
    missing = len(set(pa.parquet.read_table(lost)["document_id"].to_pylist()))
    lost.unlink()
    ((output / "links") / ".half-written").write_bytes(b"PAR1")
    told: list[Progress] = []
    graph = with_source_column(linking_graph(config, workspace))
    segment = graph.segment(graph.names, workspace, {"generate": generating})

    @contextmanager
    def computing(_: Sequence[str]) -> Iterator[Compute]:
        yield lambda run: in_this_process(run, segment, config.input)

    drive(Job(messy_inputs, output, config.input, retry="no such error"), computing, told.append)
    segment.close()
    assert told[0].note == "0 failed documents: those that INPUT holds are done again"
    assert sum(p.documents for p in told) == missing
    assert keyed(list(results.tables(output))).keys() == before.keys()
    assert not ((output / "links") / ".half-written").exists()
