"""Whatever dies, and whenever: the same command again, and every row is there once, as if nothing had been.

Real processes of a real Ray job, killed for real; only the language model is left out (deadly.py), so that
there can be thousands of rows and, with GEMEL_RAY_KILLS=20, many deaths. With the model: test_linking.py
and test_job_away.py. Drivers that are killed have processes and Rays of their own; the other jobs share one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deadly
import psutil
import pytest
from jobs import ENVIRONMENT, first_links, processes, rows_of, started, undisturbed, written

from gemel_ray import offline
from gemel_ray.errors import Stopped
from gemel_ray.job import results

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Callable[..., None]]:
    """Run a job to its end."""
    config = deadly.configured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        with offline.running(config):
            yield lambda file, output, *stage: deque(deadly.job(config, str(file), str(output), *stage))


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
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return undisturbed(tmp_path_factory.mktemp("job") / "undisturbed")


@pytest.mark.parametrize("kill", [kill_workers, kill_driver, kill_node])
def test_a_job_that_is_killed_at_a_random_time_ends_as_if_undisturbed(
    expected: dict[str, dict[str, Any]],
    on_ray: Callable[..., None],
    tmp_path: Path,
    kill: Callable[[subprocess.Popen[bytes], random.Random], None],
) -> None:
    file = written(tmp_path)
    dice, output = random.Random(kill.__name__), tmp_path / "out"
    rounds = int(os.environ.get("GEMEL_RAY_KILLS", "1"))
    for _ in range(rounds):
        process = started(file, output)
        first_links(output, process)
        time.sleep(dice.uniform(0, 2))
        kill(process, dice)
        process.wait(timeout=600)
    on_ray(file, output)
    assert rows_of(output) == expected


def test_rows_that_kill_their_worker_are_set_aside(on_ray: Callable[..., None], tmp_path: Path) -> None:
    file = written(tmp_path, {50: "dies", 180: "breaks", 300: "full", 301: "bursts"}, 400)
    on_ray(file, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 400
    failed = {identity: row["error"] for identity, row in rows.items() if row["status"] == "error"}
    assert failed == {
        "d50": "a worker died 2 times with this document alone",
        "d180": "a worker died 2 times with this document alone: RuntimeError: the engine is dead",
        "d301": "out of memory with this document alone: 4 GiB asked for",
    }


@pytest.mark.parametrize(
    ("starts", "says"), [(True, "KeyError: 'a fault of the stage'"), (False, "there is no such model")]
)
def test_a_fault_of_a_stage_ends_the_job(
    on_ray: Callable[..., None], tmp_path: Path, starts: bool, says: str
) -> None:
    file, output = written(tmp_path, {50: "fails"}, 100), tmp_path / "out"
    with pytest.raises(Stopped) as stopped:
        on_ray(file, output, deadly.Deadly(starts=starts))
    assert str(stopped.value) == f"{says}\nWhere it came from: {output}/traceback.txt"
    assert "deadly.py" in (output / "traceback.txt").read_text()


def test_where_every_worker_dies_the_job_ends(on_ray: Callable[..., None], tmp_path: Path) -> None:
    """Without it, each document in turn would cost two workers."""
    file = written(tmp_path, dict.fromkeys(range(40), "breaks"), 40)
    # Two workers may meet their third and fourth in the same moment.
    words = r"\d documents killed their workers, and none went well: RuntimeError: the engine is dead"
    with pytest.raises(Stopped, match=words):
        on_ray(file, tmp_path / "out")
    assert not results.files(tmp_path / "out")


def test_prometheus_finds_the_record_on_rays_metrics_port() -> None:
    """In a process of its own: Ray's metrics are of a process, not of a session."""
    often = os.environ | {"RAY_metrics_report_interval_ms": "500"}  # every 10 s otherwise
    ran = subprocess.run(
        [sys.executable, "-c", _SCRAPED], capture_output=True, text=True, timeout=600, check=False, env=often
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
        time.sleep(0.2)
"""
