"""Whatever dies, and whenever: the same command again, and every row is there once, as if nothing had been.

Real processes of a real Ray job, killed for real; only the language model is left out (deadly.py), so that
there can be thousands of rows and, with GEMEL_RAY_KILLS=20, many deaths. With the model: test_linking.py
and test_cluster.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from gemel_ray.job import results

pytestmark = [pytest.mark.slow, pytest.mark.ray]
COMMAND = [sys.executable, str(Path(__file__).with_name("deadly.py"))]
ROWS = 3000
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # workers import deadly, too


def written(folder: Path, texts: dict[int, str] | None = None, rows: int = ROWS) -> Path:
    """Documents d0, d1, ... without pictures."""
    file = folder / "in.jsonl"
    lines = ({"id": f"d{i}", "text": (texts or {}).get(i, "sleep"), "mentions": []} for i in range(rows))
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def started(file: Path, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(file), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | environment,
    )


def ended(file: Path, output: Path) -> None:
    process = started(file, output)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()[-2000:]


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    found = pa.concat_tables(results.tables(output)).to_pylist()
    by_id = {row["document_id"]: row for row in found}
    assert len(by_id) == len(found), "a row is there twice"
    return by_id


def first_links(output: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until something is written."""
    until = time.monotonic() + 400
    while not results.files(output):
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def processes(parent: int, title: str) -> list[psutil.Process]:
    """Its children, and theirs, whose command line begins so."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found


def kill_workers(process: subprocess.Popen[bytes], dice: random.Random) -> None:
    """Some of the job's workers, one after the other."""
    for _ in range(3):
        alive = processes(process.pid, "ray::")
        if alive:
            with contextlib.suppress(psutil.Error):
                dice.choice(alive).kill()
        time.sleep(dice.uniform(0.2, 1.0))


def kill_driver(process: subprocess.Popen[bytes], dice: random.Random) -> None:
    process.send_signal(signal.SIGKILL)


def kill_node(process: subprocess.Popen[bytes], dice: random.Random) -> None:
    """Ray's own process on this node, and with it all workers."""
    for raylet in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if raylet.name() == "raylet":
                raylet.kill()
    time.sleep(2)
    process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("job")
    file = written(folder)
    ended(file, folder / "undisturbed")
    return file, rows_of(folder / "undisturbed")


@pytest.mark.parametrize("kill", [kill_workers, kill_driver, kill_node])
def test_killed_at_random_times(
    undisturbed: tuple[Path, dict[str, dict[str, Any]]],
    tmp_path: Path,
    kill: Callable[[subprocess.Popen[bytes], random.Random], None],
) -> None:
    file, expected = undisturbed
    dice, output = random.Random(kill.__name__), tmp_path / "out"
    rounds = int(os.environ.get("GEMEL_RAY_KILLS", "1"))
    for _ in range(rounds):
        process = started(file, output)
        first_links(output, process)
        time.sleep(dice.uniform(0, 2))
        kill(process, dice)
        process.wait(timeout=600)
    ended(file, output)
    assert rows_of(output) == expected


def test_rows_that_kill_their_worker_are_set_aside(tmp_path: Path) -> None:
    file = written(tmp_path, {50: "dies", 180: "breaks", 300: "full", 301: "bursts"}, 400)
    ended(file, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 400
    failed = {identity: row["error"] for identity, row in rows.items() if row["status"] == "error"}
    assert failed == {
        "d50": "a worker died 2 times with this document alone",
        "d180": "a worker died 2 times with this document alone: RuntimeError: the engine is dead",
        "d301": "out of memory with this document alone: 4 GiB asked for",
    }


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "Stopped: KeyError: 'a fault of the stage'"),
        ({"UNSTARTED": "1"}, "Stopped: there is no such model"),
    ],
)
def test_a_fault_of_a_stage_ends_the_job(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    process = started(written(tmp_path, {50: "fails"}, 100), tmp_path / "out", **environment)
    _, said = process.communicate(timeout=600)
    assert process.returncode
    assert f"{says}\nWhere it came from: {tmp_path}/out/traceback.txt" in said.decode()
    assert "deadly.py" in (tmp_path / "out" / "traceback.txt").read_text()


def test_where_every_worker_dies_the_job_ends(tmp_path: Path) -> None:
    """Without it, each document in turn would cost two workers."""
    process = started(written(tmp_path, dict.fromkeys(range(40), "breaks"), 40), tmp_path / "out")
    _, said = process.communicate(timeout=600)
    assert process.returncode
    # Two workers may meet their third and fourth in the same moment.
    words = r"\d documents killed their workers, and none went well: RuntimeError: the engine is dead"
    assert re.search(words, said.decode())
    assert not results.files(tmp_path / "out")


def test_prometheus_finds_the_record_on_rays_metrics_port() -> None:
    """In a process of its own: Ray's metrics are of a process, not of a session."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRAPED], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "ray_gemel_ray_job_rows{" in ran.stdout
    assert 'status="linked"' in ran.stdout
    assert 'kind="cannot read the image ...: ?"' in ran.stdout


_SCRAPED = """
import time, urllib.request
from gemel_ray import offline
from gemel_ray.config import Config
with offline.running(Config()) as metrics:
    import ray
    metrics.show({
        "documents": {"done": 5, "total": None, "done_before": 1}, "statuses": {"linked": 3},
        "errors": [{"kind": "cannot read the image ...: \u00e9", "rows": 2}],
        "prompt_tokens": {}, "stage_shares": {}, "seconds_left": None,
    })
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    until = time.monotonic() + 400
    while time.monotonic() < until:
        try:
            text = urllib.request.urlopen(address).read().decode()
        except OSError:
            text = ""
        told = [line for line in text.splitlines() if line.startswith("ray_gemel_ray_job")]
        if any("job_errors" in line for line in told) and any("job_rows" in line for line in told):
            print("\\n".join(told))
            break
        time.sleep(1)
"""
