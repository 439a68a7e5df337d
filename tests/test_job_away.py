"""The real graph with a real engine in a job whose parts are taken away: its worker, engine and all, and the
Qdrant server. The rows are those that one process makes undisturbed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from jobs import first_links, processes, rows_of
from live import free_port
from parity import same_row
from qdrant_client import QdrantClient
from qdrant_server import serving
from tiny_training import tiny_language_model

from gemel_ray.config import Config, load
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.starter.demo import DATA

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROWS = 900
WAIT = 10  # seconds for the server


def test_a_worker_and_the_vectors_server_are_taken_away(tmp_path: Path) -> None:
    port, local = free_port(), QdrantClient(":memory:")
    at = f"http://127.0.0.1:{port}/bank"
    workspace, output, file = tmp_path / "workspace", tmp_path / "out", tmp_path / "in.jsonl"
    pairs = zip(range(ROWS), pq.read_table(DATA / "test.parquet")["text"].to_pylist() * ROWS, strict=False)
    file.write_text("\n".join(json.dumps({"id": f"d{i}", "text": f"{i}. {text}"}) for i, text in pairs))
    train = tmp_path / "train.parquet"  # few: the imitation of the server is slow
    pq.write_table(pq.read_table(DATA / "train.parquet").slice(0, 60), train)

    def linking(to: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gemel_ray.cli", "link", str(file), "--workspace", str(workspace)]
        # In one process: else all is retrieved long before the server is stopped.
        settings = [f"vectors.address={at}", "offline.sized=false", f"vectors.wait={WAIT / 60}"]
        for option in (*settings, "generate.dtype=float32"):
            command += ["--set", option]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
        return subprocess.Popen([*command, "--output", str(to)], **pipes, env=environment)

    def more(job: subprocess.Popen[bytes]) -> None:
        """Wait until it has written again."""
        before = len(rows_of(output))
        while len(rows_of(output)) == before:
            assert job.poll() is None
            time.sleep(0.2)

    with serving(port, local):
        lm = tiny_language_model(tmp_path / "lm", head=32)
        settings = [f"models.language={lm}", f"vectors.address={at}", "generate.dtype=float32"]
        config = load(None, {}, settings)
        build(config, str(DATA / "entities.jsonl"), [str(train)], workspace, print)
        expected = in_this_process(config, workspace, file)

        disturbed = linking(output)
        first_links(output, disturbed)
        workers = processes(disturbed.pid, "ray::MapWorker")
        assert workers
        for worker in workers:
            with contextlib.suppress(psutil.Error):
                worker.kill()
        more(disturbed)  # another worker, with an engine of its own, has taken over
    while not list((output / ".workers").glob("said-*")):
        assert disturbed.poll() is None
        time.sleep(0.1)
    with serving(port, local):
        more(disturbed)
    _, spoken = disturbed.communicate(timeout=600)
    told = spoken.decode()
    assert disturbed.returncode
    assert told.count(f"waiting up to {WAIT} s") == 2
    assert told.count("answers again") == 1
    assert f"no Qdrant server answers at http://127.0.0.1:{port} (waited {WAIT} s)" in told
    assert "Traceback" not in told
    with serving(port, local):
        again = linking(output)
        _, said = again.communicate(timeout=600)
        assert again.returncode == 0, said.decode()[-2000:]
    assert not list((tmp_path / "compiled").iterdir())  # no kernel was: a CPU's start-up would wait for it
    rows = rows_of(output)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():  # what else is in a pass is another now: scores are rounded otherwise
        same_row(row, expected[name])


def in_this_process(config: Config, workspace: Path, file: Path) -> dict[str, dict[str, Any]]:
    opened = Workspace.open(workspace, config)
    graph = linking_graph(config, opened)
    segment = graph.segment(graph.names, opened)
    try:
        tables = list(run_in_process(segment, documents(str(file))))
    finally:
        segment.close()
    return {row["document_id"]: row for table in tables for row in table.to_pylist()}
