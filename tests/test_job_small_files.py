"""Many short runs do not leave as many files of links: a run puts small ones together, each row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import edited, lines, linked, names, run_once

from gemel_ray.job import index, merging, results
from gemel_ray.storage import folder_at

RUNS = 12


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(merging, "FEW", 3)
    monkeypatch.setattr(merging, "FILE", 20)
    return tmp_path / "out"


def files_of(output: Path) -> list[str]:
    return sorted(f.name for f in (output / "links").glob("*.parquet"))


def short_runs(folder: Path, output: Path) -> str:
    """The file that a run was made over after each line that came."""
    for number in range(1, RUNS + 1):
        file = lines(folder, [f"text {i}" for i in range(number)])
        assert run_once(output, [file]) == 1
        assert linked(output) == names(*range(number))
        assert len(files_of(output)) <= 4
    return file


def test_short_runs_leave_few_files_and_each_row_once(tmp_path: Path, output: Path) -> None:
    file = short_runs(tmp_path, output)
    state = results.latest(folder_at(output))
    assert sorted(name for name, _ in state.files) == [f"links/{name}" for name in files_of(output)]
    for name, documents in state.files:
        records = index.of_file(folder_at(output), name)
        assert records is not None
        assert (len(records), records["rows"].sum()) == (documents, pq.read_metadata(output / name).num_rows)
    assert len(list((output / "index").iterdir())) == len(state.files)
    assert run_once(output, [file]) == 0


def test_rows_in_files_put_together_are_replaced_and_let_go(tmp_path: Path, output: Path) -> None:
    file = short_runs(tmp_path, output)
    edited(file, {3: "bursts", 5: "another"})
    assert run_once(output, [file]) == 2
    assert linked(output) == names(*range(RUNS))
    assert run_once(output, [file], retry="") == 1
    assert linked(output) == names(*range(RUNS))
    assert results.counts(output)["statuses"] == {"error": 1, "linked": RUNS - 1}


@pytest.mark.parametrize("call", ["write", "create", "remove"])
@pytest.mark.parametrize("after", range(6))
def test_a_driver_that_dies_while_it_puts_files_together_loses_and_doubles_nothing(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    for number in range(1, 4):
        run_once(output, [lines(tmp_path, ["works"] * number)])
    file, folder = lines(tmp_path, ["works"] * 5), type(folder_at(output))
    real, left = getattr(folder, call), [after]

    def dies(self: object, *given: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder, call, dies)
        for text in ("more", "yet more", "and more"):  # until the call is met so often
            run_once(output, [file])
            edited(file, {0: text})
    run_once(output, [file])
    assert linked(output) == names(*range(5))
    assert len(files_of(output)) <= 4


def test_files_of_another_release_s_columns_stay_by_themselves(tmp_path: Path, output: Path) -> None:
    for number in range(1, 4):
        run_once(output, [lines(tmp_path, ["works"] * number)])
    first = output / "links" / files_of(output)[0]
    table = pq.read_table(first)
    pq.write_table(table.append_column("former", pa.array(np.zeros(len(table)))), first)
    run_once(output, [lines(tmp_path, ["works"] * 4)])
    assert linked(output) == names(*range(4))
    assert len(files_of(output)) == 2
