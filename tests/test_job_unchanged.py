"""A file of the input that is as it was when a run had been through it is not read again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jobs import edited, lines, linked, names, run_once, worker

from gemel_ray import sizing
from gemel_ray.cli import main
from gemel_ray.config import load
from gemel_ray.job import inputs, selection
from gemel_ray.job.driving import Compute, Job, drive, in_this_process
from gemel_ray.job.inputs import InputFiles, unchanged
from gemel_ray.job.selection import Selection
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.settings import Input
from gemel_ray.storage import folder_at

_ALL = Selection()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of files that are read, however lately they were written."""
    found: list[str] = []

    def noted(address: str, **options: Any) -> Any:
        found.append(Path(address).name)
        return documents(address, **options)

    monkeypatch.setattr(selection, "documents", noted)
    monkeypatch.setattr(inputs, "_YOUNG", 0.0)
    return found


def test_a_file_that_is_as_it_was_is_not_read_again(tmp_path: Path, output: Path, read: list[str]) -> None:
    files = [lines(tmp_path, ["works"] * 9), lines(tmp_path, ["bursts"] * 2, "other.jsonl")]
    run_once(output, files)
    assert run_once(output, [*files, lines(tmp_path, ["works"], "new.jsonl")]) == 1
    assert read == ["in.jsonl", "other.jsonl", "new.jsonl"]
    edited(files[0], {3: "awake"})
    assert (run_once(output, files), read[3:]) == (1, ["in.jsonl"])
    assert (run_once(output, files, retry=""), read[4:]) == (2, ["other.jsonl"])
    assert Selection().total([*files, "nowhere.jsonl"], unchanged(output, files, Input())) == 0
    assert Selection().total(files, unchanged(output, files, Input())) == 11
    assert linked(output) == sorted([*names(*range(9)), *names(0, 1, file="other.jsonl"), "new.jsonl-0"])


@pytest.mark.parametrize(("also", "says"), [([], False), (["generate.beams=3"], True)])
def test_rows_of_a_configuration_that_fits_the_machine_are_not_said_to_be_of_another(
    workspace_folder: Path,
    tmp_path: Path,
    output: Path,
    also: list[str],
    says: bool,
    read: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a processor that emulates bfloat16, a job computes in float32 without being told."""
    monkeypatch.setattr(sizing, "_PROCESSOR", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : avx2")
    file = lines(tmp_path, ["works"] * 9)
    config = load(None, read_facts(workspace_folder)["settings"], ["generate.dtype=float32", *also])
    workspace = Workspace.open(workspace_folder, config)
    run_once(output, [file], fingerprint=linking_graph(config, workspace).fingerprint)
    asked = ["link", file, "--workspace", str(workspace_folder), "--output", str(output)]
    assert main([*asked, "--set", "generate.dtype=bfloat16"]) == 0  # the default: this workspace has float32
    said = capsys.readouterr().out
    assert "9 documents, 9 rows: 9 linked" in said
    assert ("9 of these rows are from earlier runs" in said) == says


def test_a_file_of_the_same_size_and_time_is_read_again(
    tmp_path: Path, output: Path, read: list[str]
) -> None:
    """As rsync leaves it."""
    file = lines(tmp_path, ["works", "words"])
    before = os.stat(file)
    run_once(output, [file])
    edited(file, {1: "other"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(file).st_size == before.st_size
    assert run_once(output, [file]) == 1


def test_a_file_is_read_again_where_not_all_of_it_was_done(
    tmp_path: Path, output: Path, read: list[str]
) -> None:
    file = lines(tmp_path, ["works"] * 9)
    run_once(output, [file], Selection(sample=0.5))
    run_once(output, [file], Selection(limit=2))
    assert len(linked(output)) < 9
    run_once(output, [file])
    assert linked(output) == names(*range(9))
    assert unchanged(output, [file], Input(fetch_official_images=True)) == {}
    next((output / "links").glob("*.parquet")).unlink()
    assert 0 < run_once(output, [file]) < 10
    assert linked(output) == names(*range(9))
    assert read == ["in.jsonl"] * 4


def test_a_file_that_was_written_just_now_is_not_taken_for_unchanged(tmp_path: Path, output: Path) -> None:
    """Another writing within a tick of the clock would have the same stamp."""
    file = lines(tmp_path, ["works"] * 9)
    run_once(output, [file])
    assert unchanged(output, [file], Input()) == {}


def test_a_file_that_cannot_be_read_now_is_not_taken_for_unchanged(
    tmp_path: Path, output: Path, read: list[str]
) -> None:
    file = lines(tmp_path, ["works"] * 9)
    run_once(output, [file])
    assert InputFiles.of([file], folder_at(output)).unchanged(Input()) == {file: 9}
    Path(file).unlink()
    assert InputFiles.of([file], folder_at(output)).unchanged(Input()) == {}


def test_where_nothing_is_left_nothing_gets_ready_to_compute(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Ray is started, no model is loaded; the rest of the run is as ever."""
    monkeypatch.setattr(inputs, "_YOUNG", 0.0)
    files = [lines(tmp_path, ["works", "bursts"]), lines(tmp_path, ["works"], "other.jsonl")]
    ready: list[int] = []

    @contextmanager
    def computing(addresses: Sequence[str]) -> Iterator[Compute]:
        ready.append(len(addresses))
        yield lambda run: in_this_process(run, worker(output, run.name).segment, Input())

    def done(given: list[str], chosen: Selection = _ALL, retry: str | None = None) -> tuple[int, list[int]]:
        ready.clear()
        finished = drive(Job(given, output, Input(), chosen, retry), computing, lambda _: None)
        return finished.documents, list(ready)

    assert done(files) == (3, [2])
    before = linked(output)
    assert done(files) == done(files[1:]) == done(files, Selection(limit=1)) == (0, [])
    assert linked(output) == before
    assert done(files, retry="") == (1, [2])
    assert done(files) == (0, [])
    next((output / "links").glob("*.parquet")).unlink()
    assert done(files)[1] == [2]
    next((output / "links").glob("*.parquet")).write_bytes(b"torn")
    assert done(files)[1] == [2]
    assert linked(output) == before
    edited(files[0], {1: "works"})
    assert done(files) == (1, [2])
    assert done([*files, lines(tmp_path, ["works"], "new.jsonl")]) == (1, [3])
