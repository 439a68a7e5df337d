"""Power cuts at any moment: what was said to be done is there, what was not is done again, nothing twice."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from power_cuts import Disk, rounds

from gemel_ray import storage
from gemel_ray.job import merging, results, worker
from gemel_ray.job.index import finished
from gemel_ray.job.inputs import InputFiles
from gemel_ray.job.merging import Merging
from gemel_ray.job.selection import Filters, Selection
from gemel_ray.job.worker import write_part
from gemel_ray.knowledge import versions
from gemel_ray.records import LINK
from gemel_ray.settings import Input
from gemel_ray.storage import folder_at

ROUNDS = int(os.environ.get("GEMEL_RAY_CUTS", "60"))


class Job:
    """What a job does to its folder: reads what is to be done, writes it, merges. Knows what it was told is
    written. `mended`: documents that failed fail no more."""

    def __init__(self, folder: Path) -> None:
        self.output, self.file = folder / "out", folder / "in.jsonl"
        self.written, self.mended = set[str](), False
        self.write({number: "text" for number in range(12)})

    def write(self, texts: dict[int, str]) -> None:
        rows = ({"id": str(number), "text": text, "mentions": []} for number, text in texts.items())
        storage.write(self.file, "".join(json.dumps(row) + "\n" for row in rows))

    def run(self) -> None:
        files = InputFiles.of([str(self.file)], self.output)
        run = results.prepare(self.output)
        files.save()
        found = finished(self.output, "" if self.mended else None)
        (share,) = Selection().of([str(self.file)])
        with Merging(self.output, run) as merging:
            for table in share.tables(found, Filters(Input())):
                for at in range(0, len(table), 3):
                    some = self._linked(table.slice(at, 3).to_pylist())
                    merging.add(write_part(some, folder_at(self.output), run), len(some))
                    self.written |= self._said(some)
            merging.done = found

    def _linked(self, documents: list[dict[str, Any]]) -> pa.Table:
        bad = {} if self.mended else {"0": "no", "5": "no"}
        links = [
            {
                "document_id": d["document_id"],
                "entity": d["text"],
                "status": "error" if d["document_id"] in bad else "linked",
                "error": bad.get(d["document_id"]),
            }
            for d in documents
        ]
        table = pa.Table.from_pylist(links, LINK)
        assert not self.written & self._said(table), "it was written before: its row is lost"
        return table.append_column("source", pa.array([d["source"] for d in documents]))

    def _said(self, table: pa.Table) -> set[str]:
        return {f"{row['document_id']} {row['entity']} {row['status']}" for row in table.to_pylist()}

    def cut(self, dice: random.Random, patch: pytest.MonkeyPatch) -> bool:
        disk = Disk(self.output.parent, dice, patch)
        was_cut = disk.until_cut(dice.randrange(90), self.run)
        disk.restart()
        return was_cut

    def found(self) -> list[tuple[str, str, str]]:
        """Of all files in links, whatever the ledger says."""
        tables = [pq.read_table(file) for file in (self.output / "links").glob("*.parquet")]
        columns = ["document_id", "entity", "status"]
        return sorted(tuple(row[c] for c in columns) for t in tables for row in t.to_pylist())  # type: ignore[misc]


@pytest.mark.parametrize("edited", [False, True])
def test_no_row_of_a_job_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    """Cut, started again, cut again; at last to its end. Also where rows that failed are done again and lines
    have changed."""
    monkeypatch.setattr(merging, "FILE", 5)
    monkeypatch.setattr(merging, "FEW", 1)
    cuts, texts = 0, dict.fromkeys(range(12), "text")
    for dice, patch in rounds(ROUNDS // 2, monkeypatch):
        (tmp_path / "disk").mkdir()
        job = Job(tmp_path / "disk")
        if edited:
            job.run()
            job.mended, texts = True, {12: "put in"} | texts | {3: "changed"}
            del texts[7]
            job.write(texts)
        cuts += job.cut(dice, patch) + job.cut(dice, patch)
        job.run()
        bad = () if edited else (0, 5)
        expected = [(str(n), text, "error" if n in bad else "linked") for n, text in texts.items()]
        assert job.found() == sorted(expected)
        shutil.rmtree(tmp_path / "disk")
        texts = dict.fromkeys(range(12), "text")
    assert cuts > ROUNDS / 2


def test_files_that_a_cut_has_torn_are_named_and_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path)
    job.run()
    links = tmp_path / "out" / "links"
    for tear in (lambda data: b"", lambda data: data[:-20]):
        (file,) = links.glob("*.parquet")
        file.write_bytes(tear(file.read_bytes()))
        job.written.clear()
        job.run()
        assert f"{file} is torn, as by a power cut: it is {file.name}.0.torn now" in caplog.text
        assert file.with_name(f"{file.name}.0.torn").exists()
        assert len(job.found()) == 12


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
    from gemel_ray.knowledge.next_version import rollback

    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "versions" / "current").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"current is torn, as by a power cut: choose .* gemel-ray kb rollback .* 0, 1"
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


_SHUTDOWN, _WITHOUT_ITS_JOURNAL = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, and its flag


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of our own on a loop device, where this machine lets us."""
    disk, mounted = tmp_path / "disk.img", tmp_path / "mounted"
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    for command in (["mkfs.ext4", "-q", str(disk)], ["mount", "-o", "loop", str(disk), str(mounted)]):
        if (
            shutil.which(command[0]) is None
            or subprocess.run(command, check=False, capture_output=True).returncode
        ):
            pytest.skip(f"{command[0]} cannot be had here")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=False)


def test_nothing_is_lost_on_a_real_ext4_that_is_shut_down(
    ext4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops what was not synced, and fails every call until the disk is mounted again."""
    monkeypatch.setattr(merging, "FILE", 5)
    monkeypatch.setattr(worker, "_PAUSES", ())
    disk, dice, real, cuts = ext4.with_name("disk.img"), random.Random(0), os.fsync, 0
    for number in range(int(os.environ.get("GEMEL_RAY_CUTS", "10"))):
        job, left = Job(ext4 / str(number)), [dice.randrange(30)]

        def cutting(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                with suppress(OSError):
                    flag = struct.pack("I", _WITHOUT_ITS_JOURNAL)
                    fcntl.ioctl(os.open(ext4, os.O_RDONLY), _SHUTDOWN, flag)
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cutting)
            with suppress(OSError, ValueError):
                job.run()
        cuts += left[0] < 0
        _close_below(ext4)
        subprocess.run(["umount", str(ext4)], check=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(ext4)], check=True)
        job.run()
        assert [name for name, *_ in job.found()] == sorted(str(n) for n in range(12))
    assert cuts


def _close_below(folder: Path) -> None:
    """What a killed process would not hold open any more."""
    gc.collect()
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(folder):
                os.close(descriptor)
