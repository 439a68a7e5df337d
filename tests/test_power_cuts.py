"""Power cuts at any moment: what was said to be done is there, what was not is done again, nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from power import Disk, rounds

from gemel_ray import storage
from gemel_ray.job import results
from gemel_ray.knowledge import versions
from gemel_ray.records import LINK

ROUNDS = 200
BATCHES = [[f"in.jsonl:{i}" for i in range(at, at + 4)] for at in range(0, 12, 4)]


def rows(sources: list[str]) -> pa.Table:
    links = pa.Table.from_pylist([{"document_id": s, "status": "linked", "entity": s} for s in sources], LINK)
    return links.append_column("source", pa.array(sources))


class Job:
    """Writes what is missing, a few runs of it; knows what it was told is written."""

    def __init__(self, output: Path) -> None:
        self.output, self.written = output, set[str]()

    def run(self) -> None:
        name = results.prepare(self.output)
        done = set(results.finished(self.output).tolist())
        assert self.written <= {s for b in BATCHES for s in b if int(results.keys([s])[0]) in done}
        for batch in BATCHES:
            new = [s for s in batch if int(results.keys([s])[0]) not in done]
            if new:
                results.write(rows(new), self.output, name)
                self.written |= set(new)


def test_no_row_of_a_job_is_lost_or_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, started again, cut again; at last to its end."""
    cuts = 0
    for dice, patch in rounds(ROUNDS, monkeypatch):
        (tmp_path / "disk").mkdir()
        job = Job(tmp_path / "disk" / "out")
        for _ in range(2):
            disk = Disk(tmp_path / "disk", dice, patch)
            cuts += disk.until_cut(dice.randrange(28), job.run)
            disk.restart()
        job.run()
        found = [i for t in results.tables(job.output) for i in t["document_id"].to_pylist()]
        assert sorted(found) == sorted(s for batch in BATCHES for s in batch)
        shutil.rmtree(tmp_path / "disk")
    assert cuts > ROUNDS


def test_files_that_a_cut_has_torn_are_named_and_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path / "out")
    job.run()
    empty, half = (job.output / name for name in results.files(job.output)[:2])
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[:-20])
    job.written.clear()
    job.run()
    assert f"{empty} is torn, as by a power cut: it is {empty.name}.0.torn now" in caplog.text
    assert half.with_name(f"{half.name}.0.torn").exists()
    assert sum(len(t) for t in results.tables(job.output)) == 12


def test_the_version_in_use_is_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dice, patch in rounds(ROUNDS, monkeypatch):
        root = tmp_path / "disk"
        for version in "12":
            (root / "versions" / version).mkdir(parents=True)
        versions.use(root, "1")
        disk, after = Disk(root, dice, patch), list[bool]()
        disk.until_cut(dice.randrange(7), lambda: after.append(versions.use(root, "2") is None))  # noqa: B023
        disk.restart()
        assert versions.current(root) in (("2",) if after else ("1", "2"))
        shutil.rmtree(root)


def test_after_a_torn_pointer_a_version_can_be_named(tmp_path: Path) -> None:
    from gemel_ray.knowledge.updating import rollback

    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "versions" / "current").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"current is torn, as by a power cut: gemel-ray kb rollback .* 0, 1"
    ):
        versions.current(tmp_path)
    assert rollback(tmp_path, "0", print) == "0"
    assert versions.current(tmp_path) == "0"


def make(path: Path, text: str) -> None:
    with storage.new_folder(path) as aside:
        (aside / "inner").mkdir()
        for name in ("a", "inner/b"):
            (aside / name).write_text(text)


def test_a_folder_is_whole_under_one_name_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dice, patch in rounds(ROUNDS, monkeypatch):
        root = tmp_path / "disk"
        root.mkdir()
        make(root / "kb", "old")
        disk = Disk(root, dice, patch)
        cut = disk.until_cut(dice.randrange(20), lambda: make(root / "kb", "new"))  # noqa: B023
        disk.restart()
        found = root / "kb" if (root / "kb").exists() else next(root.glob("kb.replaced-*"))
        texts = {(found / name).read_text() for name in ("a", "inner/b")}
        assert texts in (({"old"}, {"new"}) if cut else ({"new"},))
        shutil.rmtree(root)


@pytest.mark.parametrize("call", [storage.write, lambda p, d: storage.create(p, d.encode())])
def test_what_is_written_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Path, str], object]
) -> None:
    for dice, patch in rounds(ROUNDS, monkeypatch):
        root = tmp_path / "disk"
        root.mkdir()
        disk, file = Disk(root, dice, patch), root / "new" / "folder" / "file"
        cut = disk.until_cut(dice.randrange(14), lambda: call(file, "whole"))  # noqa: B023
        disk.restart()
        assert file.read_text() == "whole" if file.exists() else cut
        shutil.rmtree(root)


def test_of_many_creators_one_is_told_so(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda i: storage.create(tmp_path / "name", str(i).encode()), range(64)))
    assert sum(made) == 1
    assert (tmp_path / "name").read_text() == str(made.index(True))
    assert [p.name for p in tmp_path.iterdir()] == ["name"]
