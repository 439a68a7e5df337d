"""Which files an input means: each once, none that is hidden or ours, and a word on those passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemel_ray.cli import main
from gemel_ray.job import results
from gemel_ray.readers import documents, files

ROW = json.dumps({"id": "a", "text": "A street in Boston."}) + "\n"


def put(folder: Path, *names: str, text: str = ROW) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names(folder: Path, *inputs: str) -> list[str]:
    return [str(Path(f).relative_to(folder)) for f in files(inputs or [str(folder)])]


def passed_over(*inputs: Path | str) -> str:
    said: list[str] = []
    files([str(i) for i in inputs], said.append)
    return "; ".join(said)


def test_hidden_and_foreign_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "sub/b.NDJSON")
    put(tmp_path, "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/a.jsonl", "_tmp/c.jsonl")
    put(tmp_path, "package.json", "notes.txt", "more.txt", "page.md.gz", "LICENSE")
    assert names(tmp_path) == ["a.jsonl", "sub/b.NDJSON"]
    said = passed_over(tmp_path)
    assert said.startswith("passed over 9 files: 4 hidden, 2 .txt, ")
    assert all(part in said for part in ("1 of other tools", "1 .md.gz", "1 without an ending"))
    assert passed_over(tmp_path / "a.jsonl") == ""


def test_a_hidden_file_that_is_named_is_read(tmp_path: Path) -> None:
    put(tmp_path, ".hidden/_a.jsonl")
    assert names(tmp_path, f"{tmp_path}/.hidden/_a.jsonl") == [".hidden/_a.jsonl"]


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "also").symlink_to(tmp_path / "sub")
    monkeypatch.chdir(tmp_path)
    inputs = ["a.jsonl", str(tmp_path / "a.jsonl"), f"{tmp_path}/*", str(tmp_path), "sub/../a.jsonl", "also"]
    assert [Path(f).resolve().name for f in files(inputs)] == ["a.jsonl", "b.jsonl"]
    assert "given twice" in passed_over("a.jsonl", "a.jsonl")


@pytest.mark.parametrize("output", ["linked", "."])
def test_what_link_writes_is_never_input(tmp_path: Path, output: str) -> None:
    put(tmp_path, "three.jsonl")
    folder = tmp_path / output
    results.prepare(folder)
    put(folder, "manifest.json", "inputs.json", "progress.json", "report.html", ".workers/a.json", text="{}")
    put(folder, "links/0.parquet")
    assert names(tmp_path) == ["three.jsonl"]
    assert names(tmp_path, f"{tmp_path}/**") == ["three.jsonl"]
    with pytest.raises(ValueError, match=r"links.* is of .*, which gemel-ray link wrote: it is not an input"):
        files([str(folder / "links" / "0.parquet")])


def test_a_workspace_is_never_input(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "kb/workspace.json", "kb/entities.arrow", "kb/bank/bank.arrow", "kb/new.jsonl")
    assert names(tmp_path) == ["a.jsonl"]
    assert "4 of gemel-ray" in passed_over(tmp_path)
    with pytest.raises(ValueError, match=r"holds no file that ends in .*4 of gemel-ray"):
        files([str(tmp_path / "kb")])
    assert names(tmp_path, f"{tmp_path}/kb/new.jsonl") == ["kb/new.jsonl"]  # it is asked for by its name


def test_only_what_is_img2dataset_s_is_taken_for_it(tmp_path: Path) -> None:
    """Others may call their files alike."""
    put(tmp_path, "test/more.jsonl", "test.parquet", "x.jsonl", "x.jsonl.parquet", "player_stats.json")
    put(tmp_path, "data.tar", "data.parquet")
    assert len(names(tmp_path)) == 7
    put(tmp_path, "i2d/00000.tar", "i2d/00000.parquet", "i2d/00000_stats.json")
    assert len(names(tmp_path)) == 8
    assert "2 of img2dataset" in passed_over(tmp_path)


def test_a_pattern_takes_what_can_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.txt", "c/d.csv")
    assert names(tmp_path, f"{tmp_path}/*") == ["a.jsonl", "c/d.csv"]
    with pytest.raises(ValueError, match=r"holds no file that ends in .*1 \.txt"):
        files([f"{tmp_path}/*.txt"])


def test_check_says_what_it_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.jsonl", "b.txt")
    assert main(["check", str(tmp_path)]) == 0
    assert "passed over 1 files: 1 .txt" in capsys.readouterr().err


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"text": ["One.", "Two."], "image": [{"bytes": b"\xff\xd8\xff1", "path": None}] * 2})
    put(tmp_path, "dataset_dict.json", "train/dataset_info.json", "train/state.json", text="{\n}")
    path = str(tmp_path / "train" / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (address,) = files([str(tmp_path)])
    rows = [r for t in documents(address) for r in t.to_pylist()]
    assert [(r["text"], r["image"]) for r in rows] == [("One.", b"\xff\xd8\xff1"), ("Two.", b"\xff\xd8\xff1")]
