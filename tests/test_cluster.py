"""The job on a cluster of many nodes, on this machine: placed as configured, and alive when a node is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from jobs import ENVIRONMENT, first_links, rows_of, started, undisturbed, written
from live import free_port
from PIL import Image
from ray._private import services

from cluster.local import LocalCluster, local_cluster
from gemel_ray import nodes, offline
from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.errors import Mistake, Stopped
from gemel_ray.job import results
from gemel_ray.nodes import connect
from gemel_ray.offline import link
from gemel_ray.online import running
from gemel_ray.progress import Progress
from gemel_ray.segments import SegmentOptions

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def three_nodes() -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # workers import deadly
        patch.setenv("RAY_health_check_period_ms", "500")  # a node that is gone is noticed in 3 s, not in 15
        with local_cluster(2, cpus=2) as cluster:
            yield cluster


def stranger(cluster: LocalCluster, home: Path) -> subprocess.Popen[bytes]:
    """A driver of somebody who has not the cluster's token; Ray tries for 20 seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    program = f"import ray; ray.init(address='{cluster.address}')"
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment | {"HOME": str(home)}, stderr=subprocess.PIPE
    )


def test_a_node_is_lost_while_a_job_runs_and_another_joins(three_nodes: LocalCluster, tmp_path: Path) -> None:
    """And nobody gets in meanwhile who has not the token."""
    refused = stranger(three_nodes, tmp_path)
    file = written(tmp_path)
    output = tmp_path / "out"
    cluster = {"CLUSTER": three_nodes.address, "RAY_AUTH_MODE": "token"}
    job = started(file, output, **cluster)
    first_links(output, job)
    time.sleep(1)
    three_nodes.kill(0)
    three_nodes.add(cpus=2)
    _, said = job.communicate(timeout=600)
    if job.returncode:  # Ray gave the job up: the same command goes on
        assert b"node" in said.lower()
        assert started(file, output, **cluster).wait(timeout=600) == 0
    assert rows_of(output) == undisturbed(tmp_path / "undisturbed")
    _, said = refused.communicate(timeout=600)
    assert refused.returncode != 0
    assert b"Failed to connect to Ray cluster" in said


def test_segments_are_placed_as_configured(
    workspace_folder: Path, config: Config, messy_inputs: list[str], tmp_path: Path
) -> None:
    """A node with CPUs alone, and one with a GPU, made up: the last segment asks for its larger part, so
    CLIP's finds room beside it, and detecting none. The last one takes blocks of mentions, as by default on a
    GPU. No language model is needed to see it."""
    segments = (
        SegmentOptions(stages=("detect",), batch=7, threads=1, cpus=0.5),
        SegmentOptions(stages=("encode", "retrieve", "assemble"), batch=7, threads=1, cpus=0.5, gpus=0.25),
        SegmentOptions(
            stages=("generate",),
            batch=7,
            threads=os.cpu_count() or 1,
            cpus=0.5,
            gpus=0.75,
        ),
    )
    with local_cluster(1, cpus=1) as cluster:
        with_gpu = cluster.add(cpus=2, gpus=1)
        ours = replace(config.offline, segments=segments, address=cluster.address)
        votes = replace(config.generate, neighbour_weight=1.0)
        placed = replace(config, offline=ours, generate=votes)
        told_so = list[Progress]()
        manifest = link(placed, workspace_folder, messy_inputs, tmp_path / "out", told_so.append)
    assert not any("the cluster has" in progress.note for progress in told_so)
    told = json.loads((tmp_path / "out" / "progress.json").read_text())["workers"]
    nodes = {name.rsplit("-", 2)[0]: worker["node"] for name, worker in told.items()}
    assert nodes["encode+retrieve+assemble"] == nodes["generate"] == with_gpu
    assert manifest["statuses"]["linked"] > 10
    assert manifest["measures"]["rows"]["encode"] >= manifest["statuses"]["linked"] / 2
    assert set(manifest["measures"]["seconds"]) == {"detect", "encode", "retrieve", "assemble", "generate"}


def test_a_job_that_waits_for_room_in_the_cluster_says_so(
    workspace_folder: Path, config: Config, messy_inputs: list[str], tmp_path: Path
) -> None:
    """One CPU, which the only worker takes: none is left to read."""
    told, wait = list[Progress](), 0.2
    with local_cluster(1, cpus=1) as cluster:
        ours = replace(config.offline, address=cluster.address, sized=False, stall_minutes=wait)
        waits = replace(config, offline=ours)
        with pytest.raises(Stopped):
            link(waits, workspace_folder, messy_inputs, tmp_path / "out", told.append)
        cluster.add(cpus=1, gpus=1)
        connect(cluster.address, 1)
        try:
            assert nodes.lacking([SegmentOptions(cpus=0.5), SegmentOptions(cpus=0.5, gpus=1.0)], 1.0) == ""
            wide = nodes.lacking([SegmentOptions(cpus=2.0, gpus=1.0)], reading=1.0)
            with pytest.raises(Mistake, match=r"cannot be joined: .*ray.init twice"):
                connect(cluster.address, 1)
        finally:
            ray.shutdown()
    expected = "the cluster has 1 CPU and 0 GPU, and the segments need 2 CPU and 0 GPU"
    assert [progress.note for progress in told if expected in progress.note]
    assert "no node of the cluster has the 2 CPU and 1 GPU of one worker" in wide


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def can_mount() -> bool:
    return shutil.which("unshare") is not None and not subprocess.call(["unshare", "--mount", "true"])


@pytest.mark.skipif(not can_mount(), reason="a disk of its own takes the right to mount")
def test_what_nodes_with_disks_of_their_own_do_not_share_is_said_at_the_start(
    workspace_folder: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three real nodes, two in mount namespaces: where the driver's has `apart`, theirs is an empty disk."""
    apart, shared = tmp_path / "apart", tmp_path / "shared"
    shared.mkdir()
    shutil.copytree(workspace_folder, apart / "workspace")
    Image.new("RGB", (4, 4)).save(apart / "logo.png")
    line = {
        "id": "d",
        "text": "Adobe",
        "mentions": [{"start": 0, "end": 5}],
        "image": str(apart / "logo.png"),
    }
    (shared / "in.jsonl").write_text(json.dumps(line))
    (shared / "plain.jsonl").write_text(json.dumps({"id": "d", "text": "Adobe"}))
    with local_cluster(0) as cluster:
        for _ in range(2):
            cluster.add_isolated(apart)
        given = [str(shared / "in.jsonl"), "--workspace", str(workspace_folder)]
        given += ["--set", f"offline.address={cluster.address}", "--set", "offline.sized=false"]
        plain = [str(shared / "plain.jsonl"), *given[1:]]
        results.prepare(shared / "out")
        before = files_of(shared / "out")
        for what, output, seen in (
            (plain, apart, "out/run (the output)"),
            (given, shared, "logo.png (a picture of the input)"),
        ):
            assert main(["link", *what, "--output", str(output / "out")]) == 1
            said = capsys.readouterr().err
            assert re.search(
                rf"node \S+ \([^)]*\) \(and 1 more\) does not see {apart}/{re.escape(seen)}: put it", said
            )
            assert "Traceback" not in said
        assert files_of(shared / "out") == before  # a job that is refused has touched nothing
        ours = replace(config, online=replace(config.online, address=cluster.address, port=free_port()))
        refused = pytest.raises(ValueError, match=r"does not see .* \(the workspace\)")
        with refused, running(ours, apart / "workspace"):
            pass


def test_where_no_cluster_is_the_address_is_refused_at_once() -> None:
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"):
            connect(address, 1)


def test_an_address_where_something_else_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Redis does, on a port that was Ray's: silent till it is asked in its own language."""
    monkeypatch.setattr(nodes, "_CONNECTING", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}.*timed out"):
            connect(address, 1)


@pytest.mark.parametrize("by", ["RAY_ADDRESS", "ray stop"])
def test_a_cluster_that_auto_finds_and_that_is_gone_is_refused_at_once(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # of other tests
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="there is no Ray cluster on this machine for `auto` to join"):
        connect("auto", 1)
    if by == "RAY_ADDRESS":
        monkeypatch.setenv(by, gone)
    else:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(gone)
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {gone}, .*{by}"):
        connect("auto", 1)


def raylets() -> int:
    """How many of Ray's daemons are children of this process."""
    return [child.name() for child in psutil.Process().children(recursive=True)].count("raylet")


def test_a_ray_that_is_late_is_started_again_and_given_up_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the node takes longer than Ray allows it; what runs of it is ended."""
    real, failing = services.get_node, iter([True])

    def late(*given: Any) -> Any:
        if next(failing, False):
            raise Exception("The current node timed out during startup.")
        return real(*given)

    monkeypatch.setattr(services, "get_node", late)
    before = raylets()
    try:
        connect("local", 1)
        assert raylets() == before + 1
    finally:
        ray.shutdown()
    failing = iter([True] * 3)
    given_up = pytest.raises(Stopped, match=r"tried 3 times \(The current node timed out")
    with given_up, offline.running(load(None, {}, [])):
        pass
    assert raylets() == before
