"""What belongs to one run: the documents it takes, its worker, the output folder, the record."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from jobs import lines, run_once, worker

from gemel_ray.cli import main
from gemel_ray.errors import Stopped, Terminated
from gemel_ray.job import results
from gemel_ray.job.driving import TooManyErrors, faults_as_stopped, save_fault, terminable
from gemel_ray.job.index import finished
from gemel_ray.job.inputs import InputFiles
from gemel_ray.job.page import write_page
from gemel_ray.job.record import Record
from gemel_ray.job.results import error_kind
from gemel_ray.job.selection import Done, Filters, Selection, contents_of, repeated, without_mark
from gemel_ray.job.worker import Worker, batch_counts, write_measures
from gemel_ray.readers import documents
from gemel_ray.settings import Input
from gemel_ray.storage import LocalFolder, folder_at

Row = dict[str, Any]


def batches(file: str, size: int) -> Iterator[pa.Table]:
    yield from documents(file, batch=size)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def done(worker: Worker, file: str, size: int = 16) -> list[Row]:
    """The file's rows, all batches under way together."""

    async def run() -> list[pa.Table]:
        return await asyncio.gather(*(worker(batch) for batch in batches(file, size)))

    return [row for table in asyncio.run(run()) for row in table.to_pylist()]


def errors(rows: list[Row]) -> dict[str, str]:
    return {row["document_id"]: row["error"] for row in rows if row["status"] == "error"}


# A worker


def test_a_batch_that_is_too_large_for_the_memory_is_halved(tmp_path: Path, output: Path) -> None:
    results.prepare(output)
    texts = ["works"] * 5 + ["full"] + ["works"] * 4 + ["bursts"] + ["works"] * 5
    rows = done(worker(output), lines(tmp_path, texts))
    assert [row["document_id"] for row in rows] == [f"in.jsonl-{i}" for i in range(16)]
    assert errors(rows) == {"in.jsonl-10": "out of memory with this document alone: 4 GiB asked for"}


def test_a_document_that_was_alone_when_a_worker_died_twice_is_set_aside(
    tmp_path: Path, output: Path
) -> None:
    results.prepare(output)
    file = lines(tmp_path, ["works"] * 3 + ["dies"] + ["works"] * 28)
    dead = worker(output).attempts  # what workers that died of it leave behind
    whole = [f"{file}:{i}" for i in range(1, 17)]
    dead.begin(whole)
    for begun in (whole[2:4], whole[3:4], whole[3:4]):
        dead.begin(begun, alone=True)
    rows = done(worker(output), file)
    assert len(rows) == 32
    assert errors(rows) == {"in.jsonl-3": "a worker died 2 times with this document alone"}
    assert not list((output / ".attempts").glob("deadly-*"))


@pytest.mark.parametrize("lived", [False, True])
def test_where_no_worker_has_lived_no_document_is_to_blame(tmp_path: Path, output: Path, lived: bool) -> None:
    """As with an engine that this machine cannot run: a million rows would be set aside in months."""
    results.prepare(output)
    file = lines(tmp_path, ["works"] * 3)
    dead = worker(output).attempts
    whole = [f"{file}:{i}" for i in range(1, 4)]
    dead.begin(whole)
    for begun in (whole[i : i + 1] for i in (0, 0, 1, 1, 2, 2)):
        dead.begin(begun, alone=True)
    dead.save_reason(whole[2:], "EngineDied: no kernel")
    if lived:
        dead.save_survival()
        assert len(errors(done(worker(output), file))) == 3
        return
    with pytest.raises(Stopped, match=r"3 documents killed .*, and none went well: EngineDied: no k"):
        done(worker(output), file)


@pytest.mark.parametrize("size", [16, 1])
def test_a_batch_whose_worker_died_once_is_tried_again_and_nobody_is_accused(
    tmp_path: Path, output: Path, size: int
) -> None:
    """Nor is the only document of a batch: others were under way, too."""
    results.prepare(output)
    file = lines(tmp_path, ["works"] * 2 * size)
    worker(output).attempts.begin([f"{file}:{i}" for i in range(1, size + 1)])
    rows = done(worker(output), file, size)
    assert len(rows) == 2 * size
    assert not errors(rows)
    assert not list((output / ".attempts").glob("deadly-*"))


def test_what_was_written_before_the_worker_died_is_not_computed_again(tmp_path: Path, output: Path) -> None:
    results.prepare(output)
    file = lines(tmp_path, ["works"] * 16)
    first = done(worker(output), file)
    second = worker(output)
    assert done(second, file) == first
    assert second.segment.steps[0].rows == 0


def test_a_fault_of_the_stage_is_raised(tmp_path: Path, output: Path) -> None:
    results.prepare(output)
    with pytest.raises(KeyError, match="a fault of the stage"):
        done(worker(output), lines(tmp_path, ["fails"]))


def test_a_worker_of_an_earlier_run_writes_no_more(tmp_path: Path, output: Path) -> None:
    former = worker(output, results.prepare(output))
    results.prepare(output)
    with pytest.raises(results.TakenOver, match="another run of gemel-ray link has taken over"):
        done(former, lines(tmp_path, ["works"]))
    assert not results.files(output)


# The output folder


def test_equal_ids_in_two_files_are_two_documents(tmp_path: Path, output: Path) -> None:
    results.prepare(output)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        done(worker(output), lines(tmp_path / part, ["works"] * 3))
    assert len(finished(output)) == 6
    assert results.counts(output)["rows"] == 6


@pytest.mark.parametrize("name", ["foreign", "my-own-links"])
def test_a_foreign_file_among_the_links_is_named(output: Path, name: str) -> None:
    (output / "links").mkdir(parents=True)
    pa.parquet.write_table(pa.table({"a": [1]}), output / "links" / f"{name}.parquet")
    with pytest.raises(ValueError, match=rf"{name}\.parquet.*give another --output"):
        results.prepare(output)
    assert (output / "links" / f"{name}.parquet").exists()


_FULL = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from gemel_ray.job.worker import write_part
from gemel_ray.storage import folder_at
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
rows = [{"source": f"{i:032x}" * 8, "status": "linked"} for i in range(300)]
write_part(pa.Table.from_pylist(rows), folder_at(sys.argv[1]), sys.argv[2])
"""


def test_storage_that_is_full_is_said_and_leaves_nothing_half_written(output: Path) -> None:
    """The system itself refuses to let the file grow."""
    run = results.prepare(output)
    code = f"import gemel_ray.job.worker as w; w._PAUSES = (0.01,)\n{_FULL}"
    command = [sys.executable, "-c", code, str(output), run]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode
    said = ran.stderr.strip().splitlines()[-1]
    assert said.startswith(f"OSError: cannot write to {output}: ")
    assert said.endswith("File too large. The same command continues.")
    assert not results.files(output)
    assert not [path for path in output.rglob("*.parquet*") if path.is_file()]


# Which documents


def taken(selection: Selection, files: list[str], done: Done | None = None) -> list[str]:
    found = done or Done(Path(files[0]).parent, "run")
    tables = (t for s in selection.of(files) for t in s.tables(found, Filters(Input())))
    return [without_mark(source) for t in tables for source in t["source"].to_pylist()]


def test_a_limit_takes_the_first_documents_of_the_whole_input(tmp_path: Path) -> None:
    files = [lines(tmp_path, ["text"] * 300, f"{n}.jsonl") for n in "abc"]
    assert taken(Selection(limit=350), files) == [
        *(f"{files[0]}:{i}" for i in range(1, 301)),
        *(f"{files[1]}:{i}" for i in range(1, 51)),
    ]
    assert Selection(limit=350).total(files) == 350


def test_a_limit_counts_what_is_done(tmp_path: Path, output: Path) -> None:
    file = lines(tmp_path, ["works"] * 20)
    run_once(output, [file], Selection(limit=7))
    assert taken(Selection(limit=10), [file], finished(output)) == [f"{file}:{i}" for i in (8, 9, 10)]


def test_a_sample_is_always_the_same_and_of_its_size(tmp_path: Path) -> None:
    file = lines(tmp_path, ["text"] * 4000)
    tenth = taken(Selection(sample=0.1), [file])
    assert tenth == taken(Selection(sample=0.1), [file])
    assert 320 < len(tenth) < 480
    assert set(tenth) < set(taken(Selection(sample=0.5), [file]))
    assert len(taken(Selection(), [file])) == 4000


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"sample": 0.0}, {"sample": 1.5}])
def test_a_selection_that_takes_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"--limit takes|--sample takes"):
        Selection(**wrong)


# Filters


def reasons(filters: Filters, file: str) -> dict[str, str | None]:
    (share,) = Selection().of([file])
    done = Done(Path(file).parent, "run")
    rows = [row for t in share.tables(done, filters) for row in t.to_pylist()]
    return {row["document_id"].rpartition("-")[2]: row["error"] for row in rows}


def test_texts_too_short_or_too_long_are_filtered(tmp_path: Path) -> None:
    file = lines(tmp_path, ["ab", "abc", "abcdef", "abcdefg", "日本語"])
    assert reasons(Filters(Input(min_characters=3, max_characters=6)), file) == {
        "0": "filtered: a text of 2 characters, less than input.min_characters 3",
        "1": None,
        "2": None,
        "3": "filtered: a text of 7 characters, more than input.max_characters 6",
        "4": None,
    }


def test_a_pair_that_came_before_is_filtered_whatever_is_done_already(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    pairs = [("x", "1.jpg"), ("y", "1.jpg"), ("x", "2.jpg"), ("x", "1.jpg"), ("", "1.jpg"), ("", "1.jpg")]
    for file in (first, second):
        rows = [{"id": f"{file.stem}-{i}", "text": t, "image": p} for i, (t, p) in enumerate(pairs)]
        file.write_text("\n".join(map(json.dumps, rows)))
    found = repeated(contents_of(str(file), False) for file in (first, second))
    told = reasons(Filters(Input(), found), str(first))
    assert {i for i, why in told.items() if why and why.startswith("filtered:")} == {"3"}
    assert told["4"].startswith("the text is empty")
    told = reasons(Filters(Input(), found), str(second))
    assert {i for i, why in told.items() if why and why.startswith("filtered:")} == {"0", "1", "2", "3"}


def test_the_filtered_are_no_failures(output: Path) -> None:
    results.prepare(output)
    told = Record(output, 0, 0)
    errors = {"filtered: ...": [90, {}], "no ...": [10, {}]}
    told.add({"documents": 200, "statuses": {"linked": 100, "error": 100}, "errors": errors})
    TooManyErrors.unless(told, 0.06)
    with pytest.raises(TooManyErrors, match=r"10 of 200 rows are errors \(5\.0%\).* 10 of them: no"):
        TooManyErrors.unless(told, 0.04)


# The record


@pytest.mark.parametrize(
    ("error", "of_kind"),
    [
        ("cannot read the image /a/b c/d.jpg: there is no such file", "cannot read the image ... c/d.jpg"),
        ("cannot read the image https://x.org/a.jpg?b: the server answered 404", "cannot read the image ..."),
        ("line 15 is not JSON: Expecting value", "line ... is not JSON: Expecting value"),
    ],
)
def test_errors_of_a_kind_are_counted_together(error: str, of_kind: str) -> None:
    other = error.replace("15", "4,711").replace("d.jpg", "e.png").replace("x.org/a", "y.org/c")
    assert error_kind(error) == error_kind(other)
    assert error_kind(error).startswith(of_kind[:20])


def test_the_record_says_how_far_a_run_is_and_what_failed(tmp_path: Path, output: Path) -> None:
    run = results.prepare(output)
    told = Record(output, 4_000_000, 7)
    segment = worker(output, run)
    for batch in batches(lines(tmp_path, ["works"] * 9 + ["bursts"]), 10):
        rows = asyncio.run(segment(batch))
        write_measures(folder_at(output), "a-worker", "a-node", segment.segment.measures())
        told.add(json.loads(json.dumps(batch_counts(rows, run))))
    told.write("running")
    said = json.loads((output / "progress.json").read_text())
    assert said["state"] == "running"
    assert said["documents"] == {"total": 4_000_000, "done": 10, "done_before": 7}
    assert said["statuses"] == {"error": 1, "linked": 9}
    (error,) = said["errors"]
    assert (error["kind"], error["rows"]) == ("out of memory with this document alone: ... GiB asked for", 1)
    assert error["examples"][0]["source"].endswith("in.jsonl:10")
    assert said["seconds_left"] > 0
    assert said["stage_shares"] == {"deadly": 1.0}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert said["workers"]["a-worker"]["node"] == "a-node"
    assert said["workers"]["a-worker"]["peak_mib"] == pytest.approx(peak, rel=0.2)


def test_a_run_counts_none_of_another_s_workers(output: Path) -> None:
    results.prepare(output)
    write_measures(folder_at(output), "former", "a-node", {"rows": {"generate": 5}})
    assert Record(output, 0, 0).write("running")["measures"] == {"rows": {"generate": 5}}
    results.prepare(output)
    assert Record(output, 0, 0).write("running")["measures"] == {}


def test_a_timeline_stays_short_however_long_the_run(output: Path) -> None:
    results.prepare(output)
    told = Record(output, 0, 0)
    told.timeline = [(float(i), i, 0) for i in range(400)]
    told.began -= 1e6
    said = told.write("running")
    assert len(said["timeline"]) == 201
    assert said["timeline"][-1][0] >= 1e6


def test_too_many_errors_stop_a_job_and_say_which(output: Path) -> None:
    results.prepare(output)
    told = Record(output, 0, 0)
    batch = {"documents": 100, "statuses": {"linked": 60, "error": 40}, "errors": {"no ...": [40, {}]}}
    told.add(batch)
    TooManyErrors.unless(told, 0.1)  # 100 rows say little yet
    told.add(batch)
    TooManyErrors.unless(told, 0.4)
    with (
        pytest.raises(TooManyErrors, match=r"80 of 200 rows are errors \(40.0%\).* 80 of them: no ..."),
        faults_as_stopped(told, "run"),
    ):
        TooManyErrors.unless(told, 0.3)
    said = json.loads((output / "progress.json").read_text())
    assert said["state"] == "stopped"
    assert said["why"].startswith("80 of 200")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError("the disk is full"), r"^the disk is full\nWhere it came from: .*traceback\.txt$"),
        (KeyError("x"), r"^KeyError: 'x'\nWhere it came from: .*traceback\.txt$"),
    ],
)
def test_a_worker_s_fault_is_said_in_its_own_words(output: Path, fault: Exception, words: str) -> None:
    results.prepare(output)
    save_fault(folder_at(output), "run", fault)
    with pytest.raises(Stopped, match=words), faults_as_stopped(Record(output, 0, 0), "run"):
        raise RuntimeError("a page of Ray's")
    assert type(fault).__name__ in (output / "traceback.txt").read_text()
    assert json.loads((output / "progress.json").read_text())["why"] == f"{type(fault).__name__}: {fault}"


# The report


def test_the_report_shows_errors_entities_and_samples_with_their_texts(tmp_path: Path, output: Path) -> None:
    run = results.prepare(output)
    told, segment = Record(output, 40, 0, time.time() - 5), worker(output, run)
    file = lines(tmp_path, ["sleep <b>"] * 30 + ["bursts"])
    InputFiles.of([file], output).save()
    for batch in batches(file, 8):
        told.add(batch_counts(asyncio.run(segment(batch)), run))
    told.write("finished")
    known = {"inputs": [file], "workspace": {"path": "kb", "knowledge": "3"}}
    (output / "manifest.json").write_text(json.dumps(known | results.counts(output)))
    write_page(output)
    page = (output / "report.html").read_text()
    assert "96.8%" in page  # linked
    assert "out of memory with this document alone: ... GiB asked for" in page
    assert f"{file}:31" in page
    assert "30 different ones" in page
    assert page.count('class="card"') == 24
    assert "sleep &lt;b&gt;" in page
    assert page.count("<svg") == 1  # the pace; there is no telling where the time went


# The command


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    workspace_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path, ["Adobe"] * 30)
    common = [
        file,
        "--workspace",
        str(workspace_folder),
        "--output",
        str(tmp_path / "out"),
        "--dry-run",
        "--set",
        "offline.sized=false",
    ]
    assert main(["link", *common, "--limit", "12"]) == 0
    said = capsys.readouterr().out
    assert "1 files with 12 documents, of which 0 are in" in said
    assert "[detect encode retrieve assemble generate]" in said
    assert "no estimate" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reason", "timeout"], "--reason says which rows --retry-failed takes"),
        (["--max-error-rate", "5"], "--max-error-rate is a share from 0 to 1, not 5"),
        (["--sample", "0"], "--sample takes a share above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    workspace_folder: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path, ["Adobe"])
    common = [file, "--workspace", str(workspace_folder), "--output", str(tmp_path / "out")]
    assert main(["link", *common, *options]) == 2
    assert says in capsys.readouterr().err


def test_an_output_that_cannot_be_written_to_is_refused_before_anything_is_started(
    workspace_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path, ["Adobe"])
    for output, says in ((workspace_folder, "is a workspace: give another folder"), (file, "is a file")):
        assert main(["link", file, "--workspace", str(workspace_folder), "--output", str(output)]) == 2
        assert says in capsys.readouterr().err


# Its end


def test_sigterm_ends_a_job_in_order_and_is_recorded(output: Path) -> None:
    results.prepare(output)
    before = signal.getsignal(signal.SIGTERM)  # Ray leaves one of its own, once it has run in this process
    with (
        pytest.raises(Terminated, match="terminated") as ended,
        faults_as_stopped(Record(output, 0, 0), "run"),
        terminable(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ended.value.status == 143
    said = json.loads((output / "progress.json").read_text())
    assert (said["state"], said["why"]) == ("stopped", "terminated (SIGTERM)")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_is_said_in_words_though_nothing_can_be_noted(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.prepare(output)
    told = Record(output, 0, 0)

    def full(self: LocalFolder, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(LocalFolder, "write", full)
    with (
        pytest.raises(Stopped, match=r"No space left on device: 'progress\.json'"),
        faults_as_stopped(told, "run"),
    ):
        told.write("running")
