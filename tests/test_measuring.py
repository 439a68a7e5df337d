"""What bench measures: on made-up names, edited documents, and with the tests' engine one small round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.measuring.machine import machine, middle, peaks
from gemel_ray.measuring.scale import edited
from gemel_ray.measuring.speed import Measuring, Rounds
from gemel_ray.measuring.trees import made_up
from gemel_ray.readers import documents

TEST = Path(__file__).parents[1] / "gemel_ray" / "starter" / "data" / "test.parquet"


def test_a_median_with_its_spread() -> None:
    assert middle([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_machine_is_told() -> None:
    told = machine()
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert json.loads(json.dumps(told)) == told


def test_memory_of_this_process_and_of_those_it_starts() -> None:
    grow = "import time; x = bytearray(200 * 2**20); time.sleep(30)"
    with peaks() as memory, subprocess.Popen([sys.executable, "-c", grow]) as child:
        until = time.monotonic() + 25
        while max((v for k, v in memory.items() if k != "this process"), default=0) < 200:
            assert time.monotonic() < until, memory
            time.sleep(0.1)
        child.kill()
    assert memory["this process"] > 10


def test_repeated_documents_are_never_alike_and_keep_their_mention(tmp_path: Path) -> None:
    more = " ".join(f"word{i}" for i in range(99))
    lines = [
        {
            "id": "a",
            "text": f"Adobe met Google. {more}",
            "mentions": [{"start": 0, "end": 5}, {"start": 10, "end": 16}],
        },
        {"id": "b", "text": "No mention here.", "mentions": []},
    ]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = list(islice(edited([str(file)]), 100))
    assert len({(r["text"], r["mentions"][0]["start"]) for r in rows}) == 100
    assert {r["text"][m["start"] : m["end"]] for r in rows for m in r["mentions"]} == {"Adobe", "Google"}
    assert [r["id"] for r in rows] == [str(i) for i in range(100)]
    file.write_text(json.dumps(lines[1]))
    with pytest.raises(ValueError, match="no mention"):
        next(edited([str(file)]))


def test_made_up_names_are_of_real_words_and_the_same_each_time(workspace: Workspace) -> None:
    names = list(made_up(workspace, 2000))
    real = [name for _, name in workspace.entities.of(range(len(workspace.entities)))]
    assert {word for name in names for word in name.split()} <= {w for name in real for w in name.split()}
    assert len(set(names)) > 1500
    assert names == list(made_up(workspace, 2000))


@pytest.mark.slow
def test_a_round(workspace: Workspace, config: Config, generating: Any) -> None:
    """Figures that must hold on any machine; how fast it is nobody asserts."""
    table = next(documents(str(TEST), batch=16))
    stage = generating.stage
    measuring = Measuring(config, workspace, generating, table, Rounds(1, documents=8, reference=1, raw=3))
    try:
        found = {name: f["median"] for name, f in measuring.rounds(lambda _: None)["rounds"].items()}
    finally:
        measuring.front.close()
        generating.stage = stage
    assert all(value > 0 for value in found.values())
    assert found["computed_per_mention"] < found["asked_per_mention"]
    assert found["requests_per_mention"] > 1
    assert found["greedy_mentions_per_second"] > found["mentions_per_second"]
