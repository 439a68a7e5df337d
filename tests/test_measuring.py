"""What bench measures: on made-up names, endless_documents documents, and with the tests' engine one small
round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL
from files import TEST
from on_gpu import same

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.errors import Mistake, WorkspaceError
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.measuring.alone import StageFigures, alone, assembled
from gemel_ray.measuring.engine import Measuring, Sizes, engine, together
from gemel_ray.measuring.job import _core_ms, _start
from gemel_ray.measuring.machine import Look, _kind, look, looks, machine, peaks, spread
from gemel_ray.measuring.pace import Pace, steady
from gemel_ray.measuring.pictures import encoding
from gemel_ray.measuring.processes import in_new_process, in_new_processes, wait_for_all
from gemel_ray.measuring.random_model import with_random_model
from gemel_ray.measuring.reference import rates
from gemel_ray.measuring.scale import endless_documents
from gemel_ray.measuring.speed import bottleneck
from gemel_ray.measuring.trees import made_up


def test_a_figure_is_a_median_with_its_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_machine_is_told() -> None:
    told = machine()
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert json.loads(json.dumps(told)) == told


def test_the_memory_of_this_process_and_of_those_it_starts_is_measured() -> None:
    grow = "import time; x = bytearray(200 * 2**20); time.sleep(300)"
    with looks() as seen, subprocess.Popen([sys.executable, "-c", grow]) as child:
        until = time.monotonic() + 250
        while max((v for k, v in _most(seen).items() if k != "this process"), default=0) < 200:
            assert time.monotonic() < until, seen
            time.sleep(0.1)
        child.kill()
    assert _most(seen)["this process"] > 10


def _most(seen: list[Look]) -> dict[str, float]:
    return peaks(look.resident for look in seen)


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
    rows = list(islice(endless_documents([str(file)]), 100))
    assert len({(r["text"], r["mentions"][0]["start"]) for r in rows}) == 100
    assert {r["text"][m["start"] : m["end"]] for r in rows for m in r["mentions"]} == {"Adobe", "Google"}
    assert [r["id"] for r in rows] == [str(i) for i in range(100)]
    file.write_text(json.dumps(lines[1]))
    with pytest.raises(ValueError, match="no mention"):
        next(endless_documents([str(file)]))


def test_made_up_names_are_of_real_words_and_the_same_each_time(workspace: Workspace) -> None:
    names = list(made_up(workspace, 2000))
    real = [name for _, name in workspace.entities.of(range(len(workspace.entities)))]
    assert {word for name in names for word in name.split()} <= {w for name in real for w in name.split()}
    assert len(set(names)) > 1500
    assert names == list(made_up(workspace, 2000))


def test_settings_that_ask_no_language_model_are_refused(workspace_folder: Path) -> None:
    votes = load(None, read_facts(workspace_folder)["settings"], [*SMALL, "generate.neighbour_weight=1"])
    with pytest.raises(Mistake, match="neighbour_weight below 1"):
        engine(votes, workspace_folder, [str(TEST)], Sizes(), print)


def test_the_pace_is_that_of_a_full_line() -> None:
    """The first four results come together, after their models' start; the last run the line empty."""
    first = [(100.0 + i / 100, 64) for i in range(4)]
    full = [(101.03 + i, 64) for i in range(10)]
    last = [(200.0 + i, 64) for i in range(4)]
    pace = steady([*first, *full, *last], 4)
    assert pace is not None
    assert pace.rate == pytest.approx(64 / 1.0, rel=0.01)
    assert (pace.began, pace.ended) == (100.03, 110.03)
    assert steady(first, 4) is None


def test_processes_measure_together_and_what_they_say_comes_back() -> None:
    processes = in_new_processes(2, _late)
    assert len({number for number, *_ in processes}) == 2
    assert max(begun for _, begun, _, _ in processes) <= min(met for _, _, met, _ in processes)
    assert sorted(only for *_, only in processes) == [False, True]
    assert os.getpid() != in_new_process(os.getpid)


def _late() -> tuple[int, float, float, bool]:
    """This process, when it began, when all had, and whether it is the one that does what only one does."""
    begun = time.time()
    only = wait_for_all()
    return os.getpid(), begun, time.time(), only


def test_rates_of_engines_at_the_same_time_are_added_and_costs_are_not() -> None:
    one = {"mentions_per_second": 100.0, "core_ms_per_mention": 2.0, "reference_mentions_per_second": 6.0}
    other = {"mentions_per_second": 50.0, "core_ms_per_mention": 4.0}
    found = {
        "mentions_per_second": 150.0,
        "core_ms_per_mention": 3.0,
        "reference_mentions_per_second": 6.0,  # measured by one
    }
    assert together([one, other]) == found


def test_the_processor_time_of_what_this_process_starts_is_measured() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        until = time.monotonic() + 250
        while sum(s for kind, s in look().processor.items() if kind != "this process") < 1:
            assert time.monotonic() < until, look()
            time.sleep(0.2)
        child.kill()


def test_a_workspace_with_a_model_of_two_layers_is_otherwise_unchanged(
    workspace: Workspace, config: Config, workspace_folder: Path, tmp_path: Path
) -> None:
    folder = with_random_model(workspace, tmp_path)
    light = Workspace.open(folder, load(None, read_facts(folder)["settings"], SMALL))
    assert light.tokenize(["Adobe"]) == workspace.tokenize(["Adobe"])
    assert (len(light.tree), len(light.bank), light.prefix > 0) == (
        len(workspace.tree),
        len(workspace.bank),
        True,
    )
    assert (folder / "model" / "model.safetensors").stat().st_size < 20 << 20
    with pytest.raises(WorkspaceError, match=r"models\.language"):
        Workspace.open(folder, config)
    assert light.vectors().count() == workspace.vectors().count()
    assert with_random_model(workspace, tmp_path) == folder  # made anew
    assert len(Workspace.open(workspace_folder, config).tree) == len(light.tree)  # nothing was taken away


def test_links_of_two_machines_are_compared(tmp_path: Path) -> None:
    """What on_gpu.py finds out behind a run on a GPU."""

    def linked(name: str, *scores: float) -> Path:
        row = {"document_id": "a", "mention_id": "0-5", "status": "linked"}
        row["candidates"] = [{"entity": f"E{i}", "score": s} for i, s in enumerate(scores)]
        (tmp_path / name / "links").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name / "links" / "a.parquet")
        return tmp_path / name

    log, cpu = tmp_path / "log", linked("cpu/links", -0.1, -2.0).parent
    assert same(log, cpu, linked("near", -0.1004, -2.0)) == 0
    assert "1 mentions: 1 first names equal, all names in order for 1" in log.read_text()
    assert same(log, cpu, linked("far", -0.2, -2.0)) == 1
    assert same(log, cpu, linked("fewer", -0.1)) == 1
    assert same(log, cpu, linked("nil")) == 1
    assert same(log, linked("nil-cpu/links").parent, tmp_path / "nil") == 0
    assert same(log, None, tmp_path / "near") == same(log, tmp_path, tmp_path / "near") == 2


def test_without_pictures_of_its_own_encode_is_measured_on_the_starter_s(
    workspace: Workspace, config: Config, tmp_path: Path
) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text(json.dumps({"id": "a", "text": "Adobe.", "mentions": [{"start": 0, "end": 5}]}))
    assert encoding(config.encode, workspace, [str(TEST)])["pictures"] == "512, the input's"
    found = encoding(config.encode, workspace, [str(file)])
    assert found["pictures"] == "512, the starter's"
    assert found["stage_per_second"] > 0


def test_every_stage_before_the_engine_is_measured_alone(
    config: Config, workspace_folder: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(TEST).slice(0, 16), few)
    found = alone(config, workspace_folder, [str(few)], 2, seconds=0.1)
    assert list(found) == ["detect", "encode", "retrieve", "assemble"]
    assert all(f["processes"] == 2 and f["per_second"] > 0 and f["core_ms"] > 0 for f in found.values())


def test_what_holds_the_line_up_is_said_in_one_line() -> None:
    def line(retrieve: float, **engine: float) -> str:
        rates = {"detect": 9000.0, "encode": 800.0, "retrieve": retrieve, "assemble": 5000.0}
        stages = {name: StageFigures(per_second=r, processes=1, core_ms=1.0) for name, r in rates.items()}
        return bottleneck({name: spread([value]) for name, value in engine.items()}, stages)

    assert line(211, mentions_per_second=500).startswith("retrieve: 211 per second (alone: ")
    slow = line(2000, mentions_per_second=40, kernel_ms_per_mention=2)
    assert slow.endswith("the GPU computes 2 of 25 ms per mention: the host is the limit")
    slow = line(2000, mentions_per_second=40, kernel_ms_per_mention=24)
    assert slow.endswith("the GPU is the limit")


@pytest.mark.gpu
def test_the_kernels_of_a_gpu_are_timed(workspace: Workspace, config: Config, generating: Any) -> None:
    mentions = assembled(config, workspace, [str(TEST)]).slice(0, 128)
    sizes = Sizes(mentions=128, under_way=64, reference=0, raw=0)
    measuring = Measuring(config, workspace, generating, mentions, sizes, alone=True)
    (found,) = measuring.rounds(lambda _: None)
    assert 0 < found["kernel_ms_per_mention"] < 2 * 1000 / found["mentions_per_second"]


def test_what_a_start_costs_is_counted_until_the_first_batch() -> None:
    seen = [Look(at, {}, {}, {"this process": 2.0 * at, "worker": 0.1}) for at in (1.0, 2.0, 9.0)]
    assert _start(seen, 2.5) == {"all": 4.1, "this process": 4.0}
    assert _start(seen, 0.5) == {"all": 0}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::MapWorker(MapBatches(_Actor)).submit", "ray::MapWorker(MapBatches(_Actor))"),
        ("ray::MapWorker(MapBatches(_Actor))", "ray::MapWorker(MapBatches(_Actor))"),
        ("ray::ActorLocationTracker.get_actor_locations", "ray::ActorLocationTracker"),
        ("ray::IDLE", "ray::IDLE"),
        ("/usr/bin/gcs_server --x", "gcs_server"),
    ],
)
def test_a_worker_is_of_one_kind_whatever_it_does_at_the_moment(command: str, kind: str) -> None:
    """Else its processor time between two looks is lost."""
    assert _kind([command]) == kind


def test_the_time_of_a_process_that_has_ended_still_counts(tmp_path: Path) -> None:
    program, spent = tmp_path / "busy.py", dict[int, tuple[str, float]]()
    program.write_text("import time\nwhile time.process_time() < 0.2: pass\ninput()")
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE) as child:
        while look(spent).processor.get("busy.py", 0.0) < 0.1:
            pass
        child.communicate(b"\n")
    assert "busy.py" not in look().processor
    assert look(spent).processor["busy.py"] >= 0.1


def test_what_a_mention_costs_while_the_pace_is_steady() -> None:
    seen = [Look(float(at), {}, {}, {"worker": 3.0 * at, "raylet": 0.001 * at}) for at in range(10)]
    told = [(at + 0.5, 100) for at in range(10)]
    assert _core_ms(seen, told, Pace(100.0, 2.0, 8.0)) == {"all": 30.01, "worker": 30.0, "raylet": 0.01}
    assert _core_ms(seen, told, Pace(100.0, 2.1, 2.9)) is None


@pytest.mark.slow
def test_a_round_measures_every_figure_of_the_engine(
    workspace: Workspace, config: Config, generating: Any
) -> None:
    """Figures that must hold on any machine; how fast it is nobody asserts."""
    mentions = assembled(config, workspace, [str(TEST)]).slice(0, 48)
    sizes = Sizes(mentions=48, under_way=32, raw=3)
    measuring = Measuring(config, workspace, generating, mentions, sizes, alone=True)
    (found,) = measuring.rounds(lambda _: None)
    for nothing in ("requests_per_mention", "hashed_bytes_per_mention"):
        assert found.pop(nothing) == 0  # the search runs in rounds
    assert all(value > 0 for value in found.values()), found
    assert found["computed_per_mention"] < found["asked_per_mention"]
    assert all(rate > 0 for rate in rates(config, workspace.folder, measuring.prompts(1), rounds=2))


def test_resume_tells_how_long_it_takes_to_know_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["bench", "resume", "--documents", "250000", "--output", str(tmp_path), "--json"]
    for _ in range(2):  # what was made up is taken again
        assert main(common) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["documents"], said["files"]) == (250_000, 3)
        assert said["seconds"]["whole"] > said["seconds"]["what is done"] > 0
