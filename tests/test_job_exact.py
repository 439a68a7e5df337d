"""Every document of the input once in the output, whatever becomes of the input between two runs, and
whoever else writes."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from jobs import edited, lines, linked, names, run_once, worker

from gemel_ray.job import merging, results
from gemel_ray.job.inputs import InputFiles
from gemel_ray.job.merging import Merging
from gemel_ray.job.selection import Selection
from gemel_ray.job.worker import write_part
from gemel_ray.readers import documents
from gemel_ray.storage import folder_at

Row = dict[str, Any]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows_of(output: Path) -> dict[str, Row]:
    found = [row for table in results.tables(output) for row in table.to_pylist()]
    assert len({row["document_id"] for row in found}) == len(found)
    return {row["document_id"]: row for row in found}


# Edits


def test_a_line_put_in_is_done_and_no_other(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 2000)  # longer than any digest of a file's beginning
    assert run_once(output, [file]) == 2000
    edited(file, {5000: "a new one"})
    assert run_once(output, [file]) == 1
    assert linked(output) == names(*range(2000), 5000)
    assert run_once(output, [file]) == 0


def test_a_line_changed_in_place_replaces_its_row(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, [f"text {i}" for i in range(300)])
    run_once(output, [file])
    edited(file, {7: "another", 290: "bursts"})
    assert run_once(output, [file]) == 2
    assert linked(output) == names(*range(300))
    assert rows_of(output)["in.jsonl-290"]["status"] == "error"
    edited(file, {290: "mended"})
    assert run_once(output, [file]) == 1
    assert rows_of(output)["in.jsonl-290"]["status"] == "linked"


def test_lines_taken_out_lose_their_rows_and_lines_moved_keep_theirs(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 40)
    run_once(output, [file])
    kept = Path(file).read_text().splitlines()[10:]
    Path(file).write_text("\n".join(reversed(kept)))
    assert run_once(output, [file]) == 0
    assert linked(output) == names(*range(10, 40))


def test_rows_that_the_input_has_no_more_stay_until_all_of_it_is_done(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 30)
    run_once(output, [file])
    edited(file, {3: "another"})
    assert run_once(output, [file], Selection(limit=2)) == 0
    assert linked(output) == names(*range(30))


def test_equal_lines_are_as_many_rows(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"])
    once_more = Path(file).read_text()
    Path(file).write_text(once_more * 3)
    assert run_once(output, [file]) == 3
    Path(file).write_text(once_more * 5)
    assert run_once(output, [file]) == 2
    assert linked(output) == names(0, 0, 0, 0, 0)
    Path(file).write_text(once_more)
    assert run_once(output, [file]) == 0
    assert linked(output) == names(0)


# Addresses


def test_a_file_by_several_ways_is_taken_once(tmp_path: Path, output: Path) -> None:
    file = Path(lines(tmp_path, ["works"] * 15))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(file)
    ways = [str(file), f"{tmp_path}/sub/../in.jsonl", str(tmp_path / "link.jsonl"), f"file://{file}"]
    assert InputFiles.of(ways, output).addresses == [str(file)]
    assert run_once(output, ways) == 15
    for way in ways:
        assert run_once(output, [way]) == 0
    assert linked(output) == names(*range(15))


def test_a_moved_input_is_not_done_again_and_a_copy_is(tmp_path: Path, output: Path) -> None:
    (tmp_path / "a").mkdir()
    file = Path(lines(tmp_path / "a", ["works"] * 15))
    other = lines(tmp_path, ["works"] * 5, "other.jsonl")
    run_once(output, [str(file), other])
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_once(output, [str(tmp_path / "b" / "in.jsonl"), other]) == 0
    shutil.copy(tmp_path / "b" / "in.jsonl", tmp_path / "c.jsonl")  # the same once more is another input
    assert run_once(output, [str(tmp_path / "c.jsonl")]) == 15


# Error rows


def test_a_retried_row_is_replaced_when_its_successor_is_written(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 5 + ["bursts"] * 3)
    other = lines(tmp_path, ["bursts"] * 2, "other.jsonl")
    run_once(output, [file, other])
    for more, number in (((file,), 0), ((other,), 2)):
        assert run_once(output, list(more), Selection(limit=4), retry="out of memory") == number
        assert linked(output) == sorted(names(*range(8)) + names(0, 1, file="other.jsonl"))
    assert run_once(output, [file], retry="no such reason") == 0
    assert run_once(output, [file], retry="Out of Memory") == 3
    assert linked(output) == sorted(names(*range(8)) + names(0, 1, file="other.jsonl"))


def test_a_retry_that_is_killed_loses_nothing(tmp_path: Path, output: Path) -> None:
    """Its successor is written, and the driver is killed before it could merge."""
    file = lines(tmp_path, ["works"] * 5 + ["bursts"] * 3)
    run_once(output, [file])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Merging, "settle", lambda self: None)
        assert run_once(output, [file], retry="") == 3
    assert len(linked(output)) == 8
    assert run_once(output, [file], Selection(limit=3)) == 0
    assert linked(output) == names(*range(8))


# Files


def test_parts_become_files_as_a_job_goes(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FILE", 512)
    file = lines(tmp_path, ["works"] * 2100)
    run_once(output, [file])
    written = sorted((output / "links").iterdir())
    assert [pa.parquet.read_metadata(f).num_rows for f in written] == [512] * 4 + [52]
    assert linked(output) == names(*range(2100))
    assert not [p for p in (output / "parts").rglob("*") if p.is_file()]


def test_a_batch_that_is_computed_twice_in_other_company_is_there_once(tmp_path: Path, output: Path) -> None:
    """As when Ray makes a lost block of the input again, and cuts it elsewhere."""
    run = results.prepare(output)
    file = lines(tmp_path, ["works"] * 20)
    work = worker(output, run)
    for size in (8, 5):
        for table in documents(file, batch=size):
            asyncio.run(work(table))
    Merging(output, run).settle()
    assert linked(output) == names(*range(20))


def test_a_file_that_is_gone_is_done_again(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 20)
    run_once(output, [file])
    for path in (output / "links").iterdir():
        path.unlink()
    assert run_once(output, [file]) == 20
    assert linked(output) == names(*range(20))


# Two drivers


def test_what_a_worker_writes_when_its_run_was_taken_over_does_not_count(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked, and then slept while another run took over, did its documents and ended."""
    file = lines(tmp_path, ["works"] * 10)
    first = results.prepare(output)
    rows = (
        next(documents(file))
        .select(["document_id", "source"])
        .append_column("status", pa.nulls(10, pa.string()))
    )
    real, slept = folder_at(output).__class__.write, list[bool]()

    def sleeping(self: Any, name: str, data: bytes) -> None:
        if name.startswith(f"parts/{first}") and not slept:
            slept.append(True)
            assert run_once(output, [file]) == 10
        real(self, name, data)

    monkeypatch.setattr(folder_at(output).__class__, "write", sleeping)
    write_part(rows, folder_at(output), first)
    assert slept
    assert linked(output) == names(*range(10))
    assert sum(map(len, results.tables(output))) == 10
    with pytest.raises(results.TakenOver, match="another run of gemel-ray link has taken over"):
        Merging(output, first).settle()
    assert run_once(output, [file]) == 0
    assert linked(output) == names(*range(10))


def test_of_two_drivers_that_start_at_once_one_is_the_last(tmp_path: Path, output: Path) -> None:
    at = folder_at(output)
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda n: results.take_over(at, f"run{n}", lambda _: []), range(32)))
    assert sorted(state.number for state in states) == list(range(1, 33))
    assert results.latest(at).run == max(states, key=lambda s: s.number).run


def test_what_refuses_leaves_a_running_job_alone(output: Path) -> None:
    run = results.prepare(output)
    (output / "links").mkdir()
    pa.parquet.write_table(pa.table({"a": [1]}), output / "links" / "foreign.parquet")
    with pytest.raises(ValueError, match="foreign"):
        results.prepare(output)
    assert results.latest(folder_at(output)).run == run
