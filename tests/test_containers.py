"""Containers of rows: JSON documents of every build, tables with a header, Arrow, Parquet, encodings."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.readers import count, documents

Row = dict[str, Any]
ROWS = [{"id": "a", "text": "A street in Boston."}, {"id": "b", "text": "Café in «São» 😀"}]


def read(path: Path) -> list[Row]:
    rows = [row for table in documents(str(path)) for row in table.to_pylist()]
    assert count(str(path)) in (None, len(rows))
    return rows


def texts(path: Path) -> list[tuple[str, str]]:
    rows = read(path)
    assert [r["error"] for r in rows] == [None] * len(rows)
    return [(r["document_id"], r["text"]) for r in rows]


WANTED = [("a", "A street in Boston."), ("b", "Café in «São» 😀")]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)

# One JSON document

WHOLE: dict[str, Any] = {
    "an array": ROWS,
    "an array over lines": json.dumps(ROWS, indent=2),
    "rows under data": {"version": "1.0", "data": ROWS},
    "rows under annotations": {"info": {"year": 2020}, "annotations": ROWS},
    "rows under any key": {"captions_v2": ROWS, "split": "train"},
    "rows by id": {row["id"]: {"text": row["text"]} for row in ROWS},
    "rows by a number, ids of their own": {str(n): row for n, row in enumerate(ROWS)},
    "pandas columns": {
        "id": {"0": "a", "1": "b"},
        "text": {str(n): row["text"] for n, row in enumerate(ROWS)},
    },
    "pandas split": {"columns": ["id", "text"], "index": [0, 1], "data": [list(r.values()) for r in ROWS]},
    "pandas table": {"schema": {"fields": [{"name": "id"}]}, "data": ROWS},
    "lists side by side": {"id": ["a", "b"], "text": [row["text"] for row in ROWS]},
    "objects that span lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
}


@pytest.mark.parametrize("what", WHOLE)
def test_every_way_to_put_rows_into_one_document_is_read(tmp_path: Path, what: str) -> None:
    value = WHOLE[what]
    (tmp_path / "in.json").write_text(value if isinstance(value, str) else json.dumps(value))
    assert texts(tmp_path / "in.json") == WANTED
    if not isinstance(value, str):
        (tmp_path / "in.json").write_text(json.dumps(value, indent=4))
        assert texts(tmp_path / "in.json") == WANTED


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_one_row(tmp_path: Path, indent: int | None) -> None:
    row = ROWS[0] | {"mentions": [{"start": 12, "end": 18}], "meta": {"a": {"b": 1}}}
    (tmp_path / "n1.json").write_text(json.dumps(row, indent=indent))
    assert texts(tmp_path / "n1.json") == WANTED[:1]


def test_coco_captions_have_their_pictures(tmp_path: Path) -> None:
    coco = {
        "info": {}, "licenses": [{"id": 1}],
        "images": [{"id": 7, "file_name": "7.jpg", "coco_url": "http://images/7.jpg"},
                   {"id": 8, "coco_url": "http://i/8"}],
        "annotations": [{"image_id": 7, "id": 1, "caption": "One."},
                        {"image_id": 8, "id": 2, "caption": "Two."},
                        {"image_id": 7, "id": 3, "caption": "Three."},
                        {"image_id": 9, "id": 4, "caption": "Four."}],
    }  # fmt: skip
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    rows = read(tmp_path / "captions.json")
    addresses = [f"{tmp_path}/7.jpg", "http://i/8", f"{tmp_path}/7.jpg", None]
    assert [(r["text"], r["image_address"]) for r in rows] == [
        (f"{n}.", a) for n, a in zip(("One", "Two", "Three", "Four"), addresses, strict=True)
    ]


@pytest.mark.parametrize(("value", "says"), [
    ({"version": 1, "paragraphs": {"a": ["b"]}}, "one JSON object with the keys 'version', 'paragraphs'"),
    ({"text": ["a", "b"], "id": ["a"]}, "they differ in length: text has 2, id has 1"),
    ({"name": "x"}, "there is no field text or caption; the fields are 'name'"),
    ({"a.jpg": "A caption", "b": []}, "one JSON object with the keys 'a.jpg', 'b'"),
])  # fmt: skip
def test_a_document_that_is_nothing_known_is_one_row_that_says_what_it_is(
    tmp_path: Path, value: Any, says: str
) -> None:
    for indent in (None, 2):
        (tmp_path / "in.json").write_text(json.dumps(value, indent=indent))
        (row,) = read(tmp_path / "in.json")
        assert says in row["error"]


def test_an_object_that_breaks_off_gives_the_rows_before(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"data": ROWS})[:-20])
    first, last = read(tmp_path / "in.json")
    assert (first["document_id"], first["error"]) == ("a", None)
    assert "item 2 is not JSON, and nothing after it can be read" in last["error"]


def test_lines_whose_first_is_longer_than_a_look_are_lines(tmp_path: Path) -> None:
    long = {"id": "a", "text": "A street in Boston.", "note": "x" * 200_000}
    (tmp_path / "in.jsonl").write_text(json.dumps(long) + "\n" + json.dumps(ROWS[1]) + "\n")
    assert texts(tmp_path / "in.jsonl") == WANTED


@pytest.mark.parametrize("broken", ['{"id": "cut', '{"id": "a", "text"', '{"id": "a",', "{'id': 'a'}"])
def test_a_broken_first_line_costs_itself_only(tmp_path: Path, broken: str) -> None:
    (tmp_path / "in.jsonl").write_text(f"{broken}\n{LINES}")
    bad, *rows = read(tmp_path / "in.jsonl")
    assert "line 1 is not JSON" in bad["error"]
    assert [r["document_id"] for r in rows] == ["a", "b"]


# Names, packing, encodings


@pytest.mark.parametrize("name", ["in.ndjson", "in.jl", "IN.JSONL", "in.json"])
def test_lines_are_read_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LINES)
    assert texts(tmp_path / name) == WANTED


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".GZ", ".ZST"])
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_compressed_file_is_read_as_if_it_were_plain(tmp_path: Path, ending: str, kind: str) -> None:
    plain = LINES if kind == ".jsonl" else "id,text\n" + "".join(f"{r['id']},{r['text']}\n" for r in ROWS)
    pack = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[ending.lower()]  # fmt: skip
    path = tmp_path / f"in{kind}{ending}"
    path.write_bytes(pack(plain.encode()))
    assert texts(path) == WANTED


def test_a_packed_file_that_ends_too_soon_is_said(tmp_path: Path) -> None:
    data = pa.compress(LINES.encode() * 1000, "zstd", asbytes=True)
    (tmp_path / "in.jsonl.zst").write_bytes(data[: len(data) // 2])
    assert "cannot read" in read(tmp_path / "in.jsonl.zst")[-1]["error"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["lines", "array", "csv"])
def test_a_file_is_read_in_the_encoding_of_its_mark(tmp_path: Path, encoding: str, kind: str) -> None:
    text = {
        "lines": LINES.replace("\n", "\r\n"), "array": json.dumps(ROWS, ensure_ascii=False, indent=1),
        "csv": "id,text\r\n" + "".join(f"{r['id']},{r['text']}\r\n" for r in ROWS),
    }[kind]  # fmt: skip
    path = tmp_path / ("in.csv" if kind == "csv" else "in.json")
    path.write_bytes(text.encode(encoding))
    assert texts(path) == WANTED


def test_big_endian_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\xfe\xff" + LINES.encode("utf-16-be"))
    assert texts(tmp_path / "in.jsonl") == WANTED


# CSV and TSV


def table(folder: Path, text: str, name: str = "in.csv") -> list[Row]:
    (folder / name).write_text(text)
    return read(folder / name)


@pytest.mark.parametrize(
    ("name", "comma"), [("in.csv", ","), ("in.csv", ";"), ("in.csv", "|"), ("in.tsv", "\t")]
)
def test_a_table_with_a_header_is_read(tmp_path: Path, name: str, comma: str) -> None:
    lines = ["file_name,caption,id", '1.jpg,"Two\nlines, and a ""quote""",007', "2.jpg,[1] street,8"]
    first, second = table(
        tmp_path, "\n".join(lines).replace(",", comma).replace(f"lines{comma}", "lines,"), name
    )
    assert (first["document_id"], first["text"]) == ("007", 'Two\nlines, and a "quote"')
    assert first["image_address"] == f"{tmp_path}/1.jpg"
    assert second["text"] == "[1] street"


@pytest.mark.parametrize("spelled", ['[{""start"": 12, ""end"": 18}]', "[{'start': 12, 'end': 18}]"])
def test_mentions_are_read_from_a_cell(tmp_path: Path, spelled: str) -> None:
    """As JSON, and as pandas writes a column of lists."""
    (row,) = table(tmp_path, f'text,mentions\nA street in Boston.,"{spelled}"\n')
    assert [m["mention"] for m in row["given"]] == ["Boston"]


def test_places_in_gemel_s_form_are_read_from_a_table(tmp_path: Path) -> None:
    (row,) = table(
        tmp_path, "text,mention,start,end,target\nA street in Boston.,Boston,12,18,Boston (city)\n"
    )
    (mention,) = row["given"]
    assert (mention["start"], mention["target"], mention["error"]) == (12, "Boston (city)", None)


def test_empty_cells_are_null(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "id,text,image,mentions\n,A street.,,\n")
    assert (row["document_id"], row["image_address"], row["given"]) == ("in.csv:1", None, None)


def test_a_row_of_another_length_is_its_own_error(tmp_path: Path) -> None:
    first, bad, last = table(tmp_path, "id,text\na,One.\nb,Two, and more\nc,Three.\n")
    assert "it has 3 cells where the header has 2: 'b', 'Two', ' and more'" in bad["error"]
    assert (first["error"], last["error"]) == (None, None)


def test_a_table_without_a_known_header_says_so(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "A street,Boston\nA house,Paris\n")
    assert row["error"] == "the first line names no column such as text or caption, but A street, Boston"


@pytest.mark.parametrize("swapped", [False, True])
def test_conceptual_captions_have_no_header(tmp_path: Path, swapped: bool) -> None:
    pairs = [('a "quoted street', "http://e.org/1"), ("two", "https://e.org/2.jpg")]
    lines = ["\t".join(reversed(pair) if swapped else pair) for pair in pairs]
    rows = table(tmp_path, "\n".join(lines), "train.tsv")
    assert [(r["text"], r["image_address"]) for r in rows] == pairs


def test_bytes_that_are_no_utf_8_cost_their_row(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\na,Caf\xe9\nb,Tea\n".encode("latin-1"))
    bad, good = read(tmp_path / "in.csv")
    assert "text is not UTF-8" in bad["error"]
    assert good["text"] == "Tea"


# Arrow and Parquet


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("name", ["in.arrow", "in.feather"])
def test_arrow_files_and_streams_are_read_row_by_row(tmp_path: Path, form: str, name: str) -> None:
    rows = pa.Table.from_pylist(ROWS * 300)
    opened = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / name), "wb") as sink, opened(sink, rows.schema) as writer:
        writer.write_table(rows)
    assert texts(tmp_path / name) == WANTED * 300


FAR = datetime.datetime(9999, 12, 31, 23, 59, 59)
UNREADABLE: dict[str, pa.Array] = {
    "beyond its years": pa.array([FAR, FAR], pa.timestamp("us", "Asia/Tokyo")),
    "year 10000": pa.array([253402300800000000] * 2, pa.timestamp("us")),
    "no such zone": pa.array([0, 1], pa.timestamp("us", "Mars/Olympus")),
    "a field twice": pa.StructArray.from_arrays([pa.array([1, 2])] * 2, ["a", "a"]),
}


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["valid_to", "id", "width"])
def test_what_cannot_be_shown_costs_its_value(tmp_path: Path, what: str, kind: str, column: str) -> None:
    """Of a column that nobody reads, of the id, and of one that only says what the others are."""
    rows = pa.table({"text": ["One.", "Two."], column: UNREADABLE[what]})
    path = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
    assert [text for _, text in texts(path)] == ["One.", "Two."]


def test_texts_kept_as_bytes_are_texts(tmp_path: Path) -> None:
    rows = pa.table({
        "id": pa.array([b"a", b"b"]), "TEXT": pa.array(["Café".encode(), b"\xff"]),
        "URL": pa.array([b"https://e.org/a.jpg", b"https://e.org/b.jpg"]),
    })  # fmt: skip
    pq.write_table(rows, tmp_path / "in.parquet")
    good, bad = read(tmp_path / "in.parquet")
    assert (good["document_id"], good["text"], good["image_address"]) == ("a", "Café", "https://e.org/a.jpg")
    assert "TEXT is not valid Unicode" in bad["error"]


def test_columns_that_nobody_reads_are_not_read(tmp_path: Path) -> None:
    """Bytes of a damaged page of such a column, which cannot be decoded, cost nothing."""
    rows = pa.table({"text": ["One."] * 50, "blob": [bytes([n]) * 5000 for n in range(50)]})
    pq.write_table(rows, tmp_path / "in.parquet", compression="none", use_dictionary=False)
    column = pq.ParquetFile(tmp_path / "in.parquet").metadata.row_group(0).column(1)
    data = bytearray((tmp_path / "in.parquet").read_bytes())
    data[column.data_page_offset : column.data_page_offset + 200] = b"\xff" * 200
    (tmp_path / "in.parquet").write_bytes(data)
    assert [text for _, text in texts(tmp_path / "in.parquet")] == ["One."] * 50


@pytest.mark.parametrize("name", ["in.tsv", "in.csv"])
def test_a_quote_that_is_not_closed_takes_no_rows_in_silence(tmp_path: Path, name: str) -> None:
    comma = "\t" if name == "in.tsv" else ","
    rows = table(
        tmp_path, comma.join(("id", "text")) + f'\na{comma}One.\nb{comma}"Two.\nc{comma}Three.\n', name
    )
    assert (rows[0]["text"], rows[0]["error"]) == ("One.", None)
    assert "a quote in it is not closed, and took 2 lines" in rows[-1]["error"]


def test_a_quote_in_a_tsv_that_another_closes_far_below_is_an_error(tmp_path: Path) -> None:
    rows = table(tmp_path, 'id\ttext\na\t"One.\nb\tTwo.\nc\tThree."\nd\tFour.\n', "in.tsv")
    assert "a quote in it is not closed, and took 3 lines" in rows[0]["error"]
    assert rows[1]["text"] == "Four."


def test_quotes_within_a_cell_are_letters(tmp_path: Path) -> None:
    (row,) = table(tmp_path, 'id,text\na,A 5" screen\n')
    assert row["text"] == 'A 5" screen'


def test_an_empty_table_holds_nothing(tmp_path: Path) -> None:
    assert table(tmp_path, "") == table(tmp_path, "id,text\n") == []


def test_an_array_of_words_is_an_error_an_item(tmp_path: Path) -> None:
    rows = read(lines_of(tmp_path, json.dumps(["One.", "Two."], indent=1)))
    assert [r["error"] for r in rows] == [
        f"line {n} is not a JSON object, nor an item of a known data set: {word!r}"
        for n, word in ((1, "One."), (2, "Two."))
    ]


def lines_of(folder: Path, text: str) -> Path:
    (folder / "in.json").write_text(text)
    return folder / "in.json"
