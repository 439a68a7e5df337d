"""A job whose input and output are in an object store: a real S3 server, a real Ray job, killed for real."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from jobs import first_links, rows_of, started
from s3 import BUCKET, Server, serving, use

from gemel_ray.job import results

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROWS = 1500


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        use(patch, server.environment)
        yield server


def kill_worker(process: subprocess.Popen[bytes]) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        workers = psutil.Process(process.pid).children(recursive=True)
        next(w for w in workers if "_Actor" in " ".join(w.cmdline())).kill()


def test_a_job_in_a_store_is_killed_and_resumed(server: Server) -> None:
    lines = ({"id": f"d{i}", "text": "sleep", "mentions": []} for i in range(ROWS))
    source = server.put("job/in.jsonl", "\n".join(map(json.dumps, lines)).encode())
    output, dice = f"s3://{BUCKET}/job/out", random.Random(1)
    process = started(source, output)
    first_links(output, process)
    kill_worker(process)
    time.sleep(dice.uniform(0.5, 2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = sum(len(table) for table in results.tables(output))
    assert 0 < before < ROWS
    again = started(source, output)
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said.decode()[-2000:]
    rows = rows_of(output)
    assert {name: row["entity"] for name, row in rows.items()} == {
        f"d{i}": f"entity of d{i}" for i in range(ROWS)
    }
