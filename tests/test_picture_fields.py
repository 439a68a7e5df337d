"""Which field is the picture, in which form; and that what is not read is said."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gemel_ray.cli import main
from gemel_ray.readers import documents, first_look

Row = dict[str, Any]
TEXT = "A street in Boston."
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256))
B64 = base64.b64encode(JPEG).decode()


def read(folder: Path, *raw: Any, name: str = "in.jsonl") -> list[Row]:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in raw))
    return [row for table in documents(str(folder / name)) for row in table.to_pylist()]


def one(folder: Path, **fields: Any) -> Row:
    (row,) = read(folder, {"text": TEXT} | fields)
    return row


def picture(row: Row) -> Any:
    assert row["error"] is None
    return row["image"] or row["image_address"]


@pytest.mark.parametrize("field", [
    "image", "img", "image_path", "imagePath", "img_path", "imgPath", "filepath", "filename", "file_name",
    "picture", "image_file", "images", "media", "photo", "imageUrl", "image_url", "img_url", "picture_url",
    "image_file_path", "IMAGE", "image_filename", "photo_path", "jpg", "image_0", "img_link",
    "imageURI", "path",
])  # fmt: skip
def test_a_picture_is_found_under_any_plain_name(tmp_path: Path, field: str) -> None:
    for value in ("x.jpg", ["x.jpg", "y.jpg"]):
        assert picture(one(tmp_path, **{field: value})) == f"{tmp_path}/x.jpg"


@pytest.mark.parametrize(("fields", "found"), [
    ({"text": TEXT, "url": "https://e.org/c.JPG?x=1"}, True),
    ({"text": TEXT, "URL": "https://e.org/c"}, True),
    ({"text": TEXT, "url": "https://e.org/c", "width": 5, "height": 7}, True),
    ({"uid": "u", "text": TEXT, "url": "https://e.org/c", "original_width": 5}, True),
    ({"caption": TEXT, "url": "https://e.org/c"}, True), ({"TEXT": TEXT, "URL": "https://e.org/c"}, True),
    ({"text": TEXT, "url": "https://e.org/page.html"}, False),
    ({"description": TEXT, "url": "https://e.org/p"}, False),
    ({"text": TEXT, "file_name": "report.pdf"}, False), ({"text": TEXT, "image_id": "000123"}, False),
    ({"text": TEXT, "image_width": 640}, False),
])  # fmt: skip
def test_a_url_is_a_picture_s_where_it_is_plain(tmp_path: Path, fields: Row, found: bool) -> None:
    """Beside a web page's text it is the page's."""
    (row,) = read(tmp_path, fields)
    assert picture(row) == (fields.get("url") or fields.get("URL") if found else None)


def test_of_several_fields_the_plainest_is_the_picture(tmp_path: Path) -> None:
    both = one(tmp_path, url="https://e.org/page.jpg", file_name="b.jpg", image="a.jpg")
    assert picture(both) == f"{tmp_path}/a.jpg"
    assert picture(one(tmp_path, photo_url="https://e.org/p/1", photo_image_url="https://e.org/1.jpg")) == (
        "https://e.org/1.jpg"
    )
    assert picture(one(tmp_path, image=None, image_path="x.jpg")) == f"{tmp_path}/x.jpg"


@pytest.mark.parametrize("value", [
    B64, f"data:image/jpeg;base64,{B64}", f"DATA:image/jpeg;charset=utf-8;BASE64,{B64}",
    "data:image/jpeg;base64," + B64.replace("+", "%2B").replace("/", "%2F"), B64.rstrip("="),
    base64.encodebytes(JPEG).decode(), base64.urlsafe_b64encode(JPEG).decode(),
    {"bytes": B64, "path": "x.jpg"},
    JPEG.decode("latin-1"), {"bytes": JPEG.decode("latin-1")}, [{"bytes": B64}],
    {"bytes": None, "url": f" data:image/png;base64,{B64}"},
], ids=range(12))  # fmt: skip
@pytest.mark.parametrize("field", ["image", "jpg", "image_bytes", "img_b64", "images"])
def test_a_picture_in_the_row_itself_is_read(tmp_path: Path, field: str, value: Any) -> None:
    assert picture(one(tmp_path, **{field: value})) == JPEG


@pytest.mark.parametrize("ends", [" ", "\n", "\u00a0", "\u200b", "\ufeff", "\u200e \r\n"])
def test_an_address_loses_what_came_along_when_it_was_copied(tmp_path: Path, ends: str) -> None:
    assert picture(one(tmp_path, image=f"{ends}https://e.org/a.jpg{ends}")) == "https://e.org/a.jpg"
    assert picture(one(tmp_path, image=f"{ends}a.jpg{ends}")) == f"{tmp_path}/a.jpg"


@pytest.mark.parametrize(("value", "says"), [
    ("data:image/svg+xml;utf8,<svg/>", "image: a data: URL of an image is in base64"),
    ("data:image/png;base64,????", "image is not base64: it begins with '????'"),
    ("x" * 9000, "(9,000 characters): it is neither a path or URL nor a picture in base64"),
    ("www.example.org/a.jpg", "'www.example.org/a.jpg' is not a complete URL: one begins with https://"),
    ("//example.org/a.jpg", "is not a complete URL: one begins with https://"),
    (5, "image cannot be 5: it is bytes, a path, a URL or base64"),
])  # fmt: skip
def test_what_is_no_picture_is_the_row_s_error(tmp_path: Path, value: Any, says: str) -> None:
    row = one(tmp_path, id="mine", image=value)
    assert says in row["error"]
    assert row["error"].endswith(" (in.jsonl:1)")
    assert len(row["error"]) < 250


@pytest.mark.parametrize(
    "value", [None, "", " ", float("nan"), "nan", "None", "null", [], {"bytes": None, "path": None}], ids=str
)
@pytest.mark.parametrize("field", ["image", "url", "img"])
def test_a_document_has_no_picture_however_a_table_spells_that(
    tmp_path: Path, field: str, value: Any
) -> None:
    row = one(tmp_path, **{field: value})
    assert picture(row) is None
    assert row["unread_picture"] is None


def test_addresses_lose_the_white_space_at_their_ends(tmp_path: Path) -> None:
    assert picture(one(tmp_path, image=" https://e.org/a.jpg\n")) == "https://e.org/a.jpg"


@pytest.mark.parametrize("fields", [
    {"mention": "Boston", "target": "Boston"}, {"sentence": TEXT, "mentions": "Boston", "entities": "Boston"},
])  # fmt: skip
def test_released_forms_may_have_their_picture_elsewhere(tmp_path: Path, fields: Row) -> None:
    row = (
        one(tmp_path, image="a.jpg", **fields)
        if "mention" in fields
        else read(tmp_path, fields | {"image": "a.jpg"})[0]
    )
    assert picture(row) == f"{tmp_path}/a.jpg"


def test_pictures_of_an_imagefolder_are_found_beside_their_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n0001.jpg,A street in Boston.\n")
    (row,) = [r for t in documents(str(tmp_path / "metadata.csv")) for r in t.to_pylist()]
    assert picture(row) == f"{tmp_path}/0001.jpg"


def test_img2dataset_s_files_without_their_parquet(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000002.jpg").write_bytes(JPEG)
    raw = {
        "caption": "A",
        "url": "https://e.org/2.jpg",
        "key": "000000002",
        "status": "success",
        "width": 120,
    }
    (tmp_path / "00000" / "000000002.json").write_text(json.dumps(raw, indent=4))
    (row,) = [r for t in documents(str(tmp_path / "00000" / "000000002.json")) for r in t.to_pylist()]
    assert Path(picture(row)) == tmp_path / "00000" / "000000002.jpg"


@pytest.mark.parametrize(("text", "fields"), [
    ("First.", {"captions": ["First.", "Second."]}), ("First.", {"caption": ["First.", "Second."]}),
    ("First.", {"sentences": [{"raw": "First.", "tokens": ["first"]}, {"raw": "Second."}]}),
    ("First.", {"text": None, "caption": "First."}),
])  # fmt: skip
def test_of_several_captions_the_first_is_the_text(tmp_path: Path, text: str, fields: Row) -> None:
    assert read(tmp_path, fields, {"text": "other"})[0]["text"] == text


def test_a_status_that_is_not_img2dataset_s_says_nothing_of_a_picture(tmp_path: Path) -> None:
    assert picture(one(tmp_path, key="a", status="published", image="a.jpg")) == f"{tmp_path}/a.jpg"


# What is not read


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    thumb, other, blank = read(
        tmp_path,
        {"text": TEXT, "thumb": "a.jpg", "meta": {"a": 1}, "empty": None},
        {"text": TEXT, "image": "a.jpg", "thumb": "b.jpg"},
        {"text": TEXT, "img": 5},
    )
    assert (thumb["unread_picture"], thumb["unread"]) == ("thumb", "thumb\nmeta")
    assert (other["unread_picture"], other["unread"]) == (None, "thumb")
    assert blank["unread_picture"] == "img"


def test_columns_are_looked_at_for_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    rows = {"text": [TEXT] * 3, "front": [{"bytes": JPEG}, None, {"bytes": JPEG}], "n": [1, 2, 3]}
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    found = [r for t in documents(str(tmp_path / "in.parquet")) for r in t.to_pylist()]
    assert [r["unread_picture"] for r in found] == ["front", None, "front"]
    assert [r["unread"] for r in found] == ["front\nn", "n", "front\nn"]
    assert first_look([str(tmp_path / "in.parquet")]) == [
        "of the first 3 documents: 2 documents came with something that looks like a picture and is not "
        "read: front in 2 (docs/inputs.md says what is)",
        "of the first 3 documents: fields that are not read: n in 3, front in 2",
    ]


def test_check_says_what_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path, {"id": "a", "text": TEXT, "thumb": "a.jpg"}, {"id": "b", "text": TEXT + " B", "size": 5})
    assert main(["check", str(tmp_path / "in.jsonl")]) == 1
    out, err = capsys.readouterr()
    assert "of the first 2 documents: 1 documents came with something that looks like a picture" in err
    assert "1 documents with something that looks like a picture, and is not read" in out
    assert "in.jsonl: a: the field 'thumb' looks like a picture and is not read" in out
    assert "fields that are not read: thumb in 1, size in 1" in out


def test_check_reads_pictures_in_base64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    real = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    read(
        tmp_path,
        *({"id": str(n), "text": f"{TEXT} {n}", "image": i} for n, i in enumerate((real, "x" * 40_000))),
    )
    assert main(["check", str(tmp_path / "in.jsonl")]) == 1
    out = capsys.readouterr().out
    assert "2 documents, 0 mentions, 1 pictures looked at" in out
    assert "neither a path or URL nor a picture in base64" in out
    assert max(map(len, out.splitlines())) < 300
