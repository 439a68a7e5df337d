"""Documents with a table: what becomes of it, in files and in requests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.client import document
from gemel_ray.knowledge.entity_rows import entity
from gemel_ray.readers import cells, documents
from gemel_ray.segments import Online
from gemel_ray.serving.requests import Body, as_call, rows
from gemel_ray.serving.schemas import Fault

TABLE = {"columns": ["year", "player", "club"], "rows": [[1998, "Henry", "Monaco"], [2003, "Henry", None]]}
CSV = "year,player,club\n1998,Henry,Monaco\n2003,Henry,\n"
RECORDS = [{"year": 1998, "player": "Henry", "club": "Monaco"}, {"year": 2003, "player": "Henry"}]
TEXT = "Goals\nyear: 1998; player: Henry; club: Monaco\nyear: 2003; player: Henry"
CELL = {"row": 1, "column": "player", "target_id": "Q1"}


def read(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    (folder / "in.jsonl").write_text(json.dumps({"id": "1", **row}))
    (found,) = next(documents(str(folder / "in.jsonl"))).to_pylist()
    return dict(found)


@pytest.mark.parametrize("table", [TABLE, CSV, RECORDS, json.dumps(TABLE), json.dumps(RECORDS)])
def test_a_table_stands_in_the_text_in_all_its_forms(tmp_path: Path, table: Any) -> None:
    row = read(tmp_path, {"text": "Goals", "table": table, "mentions": [CELL]})
    (mention,) = row["given"]
    assert (row["error"], row["text"], row["unread"]) == (None, TEXT, None)
    assert TEXT[mention["start"] : mention["end"]] == mention["mention"] == "Henry"
    assert mention["start"] > TEXT.index("2003")
    assert (mention["mention_id"], mention["target_id"]) == ("1/player", "Q1")


def test_a_table_alone_is_a_document_and_its_mentions_may_be_found(tmp_path: Path) -> None:
    row = read(tmp_path, {"table": RECORDS})
    assert (row["text"], row["given"]) == (TEXT.removeprefix("Goals\n"), None)


def test_a_mention_may_be_words_of_a_cell_a_whole_cell_or_words_of_the_text(tmp_path: Path) -> None:
    table = [{"who": "Henry and Vieira", "where": "Arsenal"}]
    asked = [{"row": 0, "column": 0, "mention": "Vieira"}, {"row": 0, "column": 1}, "Derby"]
    row = read(tmp_path, {"text": "The Derby", "table": table, "mentions": asked})
    assert [m["mention"] for m in row["given"]] == ["Vieira", "Arsenal", "Derby"]
    assert all(row["text"][m["start"] : m["end"]] == m["mention"] for m in row["given"])


def test_of_a_long_table_the_rows_with_mentions_stand_in_the_text(tmp_path: Path) -> None:
    table = [{"n": n, "name": f"name{n}"} for n in range(1_000)]
    row = read(tmp_path, {"table": table, "mentions": [{"row": 900, "column": "name"}]})
    lines = row["text"].split("\n")
    assert lines[-1] == "n: 900; name: name900"
    assert lines[:-1] == [f"n: {n}; name: name{n}" for n in range(23)]


@pytest.mark.parametrize(("table", "why"), [
    ({"columns": ["a"], "rows": [["x", "y"]]}, "row 0 of the table has 2 cells where it has 1 columns"),
    ({"columns": ["a", "a"], "rows": [["x", "y"]]}, "two columns 'a'"),
    ({"columns": ["a"], "rows": []}, "no rows"),
    ({"columns": ["a"]}, "a list of lists of cells"),
    ({"columns": ["a"], "rows": [[{"b": 1}]]}, "a cell is a text or a number"),
    ([1, 2], "a table is columns and rows"),
    ('{"columns": ', "neither JSON nor CSV"),
    ({"columns": ["a"], "rows": ["x"]}, "row 0 of the table is 'x'"),
])  # fmt: skip
def test_a_table_that_is_wrong_costs_its_document(tmp_path: Path, table: Any, why: str) -> None:
    row = read(tmp_path, {"text": "Goals", "table": table})
    assert why in row["error"]


@pytest.mark.parametrize(("asked", "why"), [
    ({"row": 2, "column": "player"}, "there is no row 2 in the table: it has 2, from 0"),
    ({"row": 0, "column": "team"}, "there is no column 'team' in the table: it has year, player, club"),
    ({"row": 1, "column": "club"}, "the cell in row 1, column club, is empty"),
    ({"row": 0, "column": "club", "mention": "Paris"}, "'Paris' is not in its cell 'Monaco'"),
    ({"row": True, "column": "club"}, "there is no row True"),
])  # fmt: skip
def test_a_cell_that_is_not_there_costs_its_mention(tmp_path: Path, asked: Any, why: str) -> None:
    row = read(tmp_path, {"text": "Goals", "table": TABLE, "mentions": [asked, CELL]})
    bad, good = row["given"]
    assert row["error"] is None
    assert why in bad["error"]
    assert good["error"] is None


def test_a_table_is_read_in_csv_and_parquet_files(tmp_path: Path) -> None:
    quoted = json.dumps(TABLE).replace('"', '""'), json.dumps([CELL]).replace('"', '""')
    (tmp_path / "in.csv").write_text(f'id,text,table,mentions\n1,Goals,"{quoted[0]}","{quoted[1]}"\n')
    pq.write_table(
        pa.table({"text": ["Goals"], "table": [RECORDS], "mentions": [[CELL]]}), tmp_path / "in.parquet"
    )
    for file in ("in.csv", "in.parquet"):
        (row,) = next(documents(str(tmp_path / file))).to_pylist()
        assert (row["error"], row["text"], row["given"][0]["mention_id"]) == (None, TEXT, "1/player")


@pytest.mark.parametrize(("name", "content"), [
    ("cup.csv", CSV), ("cup.CSV", CSV.replace(",", ";")), ("cup.tsv", CSV.replace(",", "\t")),
    ("cup.json", json.dumps(RECORDS)), ("cup.csv.gz", CSV),
])  # fmt: skip
def test_a_file_is_one_table_of_a_document(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else b"\xef\xbb\xbf" + data)
    row = read(tmp_path, {"text": "Goals", "table": name, "mentions": [CELL]})
    assert (row["error"], row["text"], row["given"][0]["mention_id"]) == (None, TEXT, "1/player")


@pytest.mark.parametrize(("name", "why"), [
    ("none.csv", "cannot read the table 'none.csv'"),
    ("https://example.org/cup.csv", "a table's file is a path"),
    ("empty.csv", "neither JSON nor CSV"),
])  # fmt: skip
def test_a_file_that_is_no_table_costs_its_document(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty.csv").write_text("")
    assert why in read(tmp_path, {"text": "Goals", "table": name})["error"]


def asked(content: dict[str, Any], **limits: Any) -> dict[str, Any]:
    (table,) = rows(as_call(Body(content), "r", Online(**limits)), Online(**limits), lambda url: b"")
    (row,) = table.to_pylist()
    return dict(row)


def test_a_request_has_the_row_of_a_file(tmp_path: Path) -> None:
    content = document("Goals", mentions=[(1, "player"), (0, 5)], table=TABLE)
    row = asked(content)
    assert row["given"] == read(tmp_path, content)["given"]
    assert row["text"] == TEXT
    assert asked({"text": "", "table": CSV})["text"] == TEXT.removeprefix("Goals\n")


@pytest.mark.parametrize(("content", "limits", "why"), [
    ({"text": "", "table": {"columns": ["a"], "rows": []}}, {}, "no rows"),
    ({"text": "Goals", "table": TABLE, "mentions": [{"row": 9, "column": 0}]}, {}, "there is no row 9"),
    ({"text": "Goals", "table": CSV}, {"characters": 40}, "at most 40 are taken"),
    ({"text": "Goals", "table": "/etc/cup.csv"}, {}, "the table has no rows"),
    ({"text": "Goals", "table": TABLE, "mentions": [{"row": 0, "column": 0}] * 2}, {}, "given twice"),
    ({"text": "Goals", "mentions": [{"row": 0, "column": 0}]}, {}, "a mention is its words or an object"),
])  # fmt: skip
def test_a_request_with_a_wrong_table_is_refused_with_the_reason(
    content: dict[str, Any], limits: dict[str, Any], why: str
) -> None:
    with pytest.raises(Fault, match=why):
        asked(content, **limits)


def test_an_entity_s_table_stands_behind_its_description() -> None:
    rejects: list[str] = []
    made = entity({"id": "1", "name": "A", "description": "poet", "table": {"born": 1850}}, rejects.append)
    assert made["description"] == "poet; born: 1850"
    assert entity({"ID": "1", "Label": "A", "Table": CSV})["description"].startswith("year: 1998; player")
    wrong = entity({"id": "1", "name": "A", "description": "poet", "table": [1]}, rejects.append)
    assert wrong["description"] == "poet"
    assert "the table [1] of 1 is not understood" in rejects[0]


def test_a_table_with_too_many_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 256 are read"):
        cells.text_with_table("", [dict.fromkeys(map(str, range(300)))], None)
