"""Data sets in their own forms: what their files say is what the documents say."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.readers import count, documents

Row = dict[str, Any]
PASSAGE = [
    "The Lions versus the Packers (2007).",
    "https://upload.wikimedia.org/a/Lions.jpg",
    "sports",
    [
        ["Lions", "Organization", 4, 9, "https://en.wikipedia.org/wiki/Detroit_Lions"],
        ["Packers", "Organization", 21, 28, "nhttps://en.wikipedia.org/wiki/Green_Bay_%28Packers%29#Now"],
        ["2007", "", 30, 34, "nil"],
    ],
]
CANDIDATES = ["A day in Paris.", "https://e.org/p.jpg", "Paris", "Location", "A day in", ".",
              "https://en.wikipedia.org/wiki/Paris", ["https://en.wikipedia.org/wiki/Paris_Hilton"],
              "culture", 9, 14]  # fmt: skip
ITEM = {"id": "7-0", "sentence": "Smith with Will Rogers.", "mentions": "Will Rogers",
        "entities": "Will Rogers (actor)", "answer": "Q457840", "imgPath": ""}  # fmt: skip


def written(folder: Path, value: Any, name: str = "in.json", **spelling: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, **spelling))
    return path


def read(path: Path, **options: Any) -> list[Row]:
    return [row for table in documents(str(path), **options) for row in table.to_pylist()]


def told(row: Row) -> list[tuple[Any, ...]]:
    assert row["error"] is None
    names = ("mention", "start", "end", "target", "target_id", "type", "error")
    return [tuple(m[n] for n in names) for m in row["given"]]


# WikiDiverse


def test_wikidiverse_s_passages_are_read(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path, [PASSAGE]))
    assert (row["document_id"], row["text"]) == ("in.json:1", PASSAGE[0])
    assert (row["image_key"], row["image_address"]) == (PASSAGE[1], None)
    assert told(row) == [
        ("Lions", 4, 9, "Detroit Lions", None, "Organization", None),
        ("Packers", 21, 28, "Green Bay (Packers)", None, "Organization", None),
        ("2007", 30, 34, None, "NIL", "sports", None),
    ]


def test_wikidiverse_is_read_with_candidates(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path, [CANDIDATES]), fetch_official_images=True)
    assert told(row) == [("Paris", 9, 14, "Paris", None, "Location", None)]
    assert row["image_address"] == "https://e.org/p.jpg"


@pytest.mark.parametrize("start", [5, 17, None, "4"])
def test_a_place_that_holds_other_words_is_the_nearest_that_holds_them(tmp_path: Path, start: Any) -> None:
    item = ["Lions and Lions", "", "t", [["Lions", "O", start, 20, "Detroit Lions"]]]
    (row,) = read(written(tmp_path, [item]))
    assert told(row)[0][1:4] == ((10, 15) if start == 17 else (0, 5)) + ("Detroit Lions",)


def test_a_wrong_mention_of_wikidiverse_costs_no_other(tmp_path: Path) -> None:
    wrong = [["Bears", "O", 0, 5, "Bears"], "Lions", [" ", "O", 3, 4, "x"], [5, "O", 4, 9, "x"]]
    twice = PASSAGE[3][0]
    (row,) = read(written(tmp_path, [[*PASSAGE[:3], [*wrong, twice, twice]]]))
    errors = [m["error"] for m in row["given"]]
    assert (errors[0], row["given"][0]["start"]) == (None, None)  # it is asked for by its words
    assert all("a mention is [mention, type" in e for e in errors[1:4])
    assert errors[4:] == [None, "the mention 'Lions' is given twice"]


def test_wikidiverse_names_its_pictures_by_their_md5(tmp_path: Path) -> None:
    """Also where pictures are to be fetched: a file that is there need not be."""
    file = f"wikinewsImgs/{hashlib.md5(b'Lions.svg').hexdigest()}.png"
    written(tmp_path, "picture", file)
    item = [PASSAGE[0], "https://upload.wikimedia.org/a/Lions.svg", *PASSAGE[2:]]
    (row,) = read(written(tmp_path, [item]), fetch_official_images=True)
    assert (row["image_key"], row["image_address"]) == (item[1], f"{tmp_path}/{file}")


# WikiMEL, Richpedia-MEL, MIMIC


@pytest.mark.parametrize("indent", [None, 2])
def test_items_are_read_from_an_object_by_id(tmp_path: Path, indent: int | None) -> None:
    items = {"33-0": ITEM, "33-1": ITEM | {"mentions": "smith", "entities": "J. Smith", "answer": "nil"}}
    first, second = read(written(tmp_path, items, indent=indent))
    assert (first["document_id"], second["document_id"]) == ("33-0", "33-1")
    assert told(first) == [("Will Rogers", 11, 22, "Will Rogers (actor)", "Q457840", None, None)]
    assert told(second) == [("smith", 0, 5, None, "NIL", None, None)]


def test_items_are_read_from_an_array(tmp_path: Path) -> None:
    item = ITEM | {"mentions": "Will%20Rogers", "entities": "Will%20Rogers"}
    del item["answer"]
    (row,) = read(written(tmp_path, [item]))
    assert row["document_id"] == "7-0"
    assert told(row) == [("Will Rogers", 11, 22, "Will Rogers", None, None, None)]


def test_gold_may_be_an_id_alone(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path, [{k: v for k, v in ITEM.items() if k != "entities"}]))
    assert told(row)[0][3:5] == (None, "Q457840")


@pytest.mark.parametrize(("key", "file"), [
    ("a.jpg", "a.jpg"), ("KVQAimgs/a.png", "KVQAimgs/a.png"), ("KVQAimgs/a.b.png", "mention_image/a.jpg"),
    ("a.svg", "mention_images/a.jpg"), ("a.jpg", "images/a.jpg"), ("a.jpg", None),
])  # fmt: skip
def test_pictures_lie_where_releases_keep_them(tmp_path: Path, key: str, file: str | None) -> None:
    if file:
        written(tmp_path, "picture", file)
    (row,) = read(written(tmp_path, [ITEM | {"imgPath": key}]))
    assert (row["image_key"], row["image_address"]) == (key, f"{tmp_path}/{file}" if file else None)


def test_of_several_pictures_the_first_counts(tmp_path: Path) -> None:
    item = {k: v for k, v in ITEM.items() if k != "imgPath"}
    several, none = read(
        written(tmp_path, [item | {"img_list": ["a.jpg", "b.jpg"]}, item | {"img_list": []}])
    )
    assert (several["image_key"], none["image_key"]) == ("a.jpg", None)


@pytest.mark.parametrize(("changed", "message"), [
    ({"mentions": ""}, "the mention is empty"),
    ({"mentions": ""}, "the mention is empty"), ({"mentions": 5}, "mentions cannot be 5"),
    ({"sentence": " "}, "the text is empty"), ({"img_list": "a.jpg"}, "img_list cannot be"),
    ({"mentions": "\ud800"}, "not valid Unicode"), ({"imgPath": "\ud800"}, "not valid Unicode"),
])  # fmt: skip
def test_a_wrong_item_says_why_and_its_neighbours_live(tmp_path: Path, changed: Row, message: str) -> None:
    before, row, after = read(written(tmp_path, [ITEM, ITEM | {"id": "bad"} | changed, ITEM]))
    assert row["document_id"] == "bad"
    assert message in row["error"]
    assert before["error"] is after["error"] is None


# One JSON document


def test_whole_documents_are_told_by_what_they_hold(tmp_path: Path) -> None:
    """An array and lines of the same rows are the same documents, ours and the official form too."""
    ours = [{"id": "a", "text": "abc", "mentions": []}, {"id": "b", "text": "a", "mention": "a"}, ITEM]
    lines = "\n".join(json.dumps(row) for row in ours)
    whole, as_lines = read(written(tmp_path, ours)), read(written(tmp_path, lines, "lines.json"))
    assert [row | {"source": None} for row in whole] == [row | {"source": None} for row in as_lines]


def test_an_object_in_front_of_a_line_makes_no_whole_document(tmp_path: Path) -> None:
    line = json.dumps({"image": {"path": "a.jpg"}, "text": 'a "sentence": b'})
    assert [r["error"] for r in read(written(tmp_path, f"{line}\n{line}\n"))] == [None, None]


@pytest.mark.parametrize("first", [
    {"image": {"path": "a.jpg"}, "text": "a"}, {"meta": {"sentence": "x"}, "text": "a"}, [{"text": "a"}],
], ids=str)  # fmt: skip
def test_a_first_line_that_is_json_by_itself_makes_lines(tmp_path: Path, first: Any) -> None:
    """Whatever it or the lines behind it hold: none of them may be lost."""
    ours, item = {"id": "a", "text": "abc"}, ITEM | {"id": "b"}
    rows = read(written(tmp_path, "\n".join(map(json.dumps, [first, ours, item])), "in.jsonl"))
    assert [r["document_id"] for r in rows] == ["in.jsonl:1", "a", "b"]
    assert [r["error"] is None for r in rows] == [isinstance(first, dict), True, True]


def test_items_in_no_known_form_are_errors(tmp_path: Path) -> None:
    rows = read(written(tmp_path, [PASSAGE, [1, 2], "text", None, 7, {}, PASSAGE]))
    assert [r["error"] is None for r in rows] == [True, *[False] * 5, True]
    assert all("is not a JSON object" in r["error"] for r in rows[1:5])


@pytest.mark.parametrize(("end", "reason"), [
    ("", "expected ','"), (", ", "item 3 is not JSON"), (', {"sentence', "item 3 is not JSON"),
    (" 5]", "expected ','"), ("] []", "more after the closing"), (', "a"', "expected ','"),
    (", " + "[" * 100_000, "item 3 is not JSON"),
])  # fmt: skip
def test_a_document_that_breaks_off_gives_what_stands_before(tmp_path: Path, end: str, reason: str) -> None:
    path = written(tmp_path, json.dumps([ITEM, ITEM])[:-1] + end)
    rows = read(path)
    assert [r["error"] for r in rows[:2]] == [None, None]
    assert reason in rows[-1]["error"]
    assert len(rows) == count(str(path))


def test_bytes_that_are_no_text_cost_their_item_only(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(json.dumps([ITEM, ITEM | {"sentence": "FF"}, ITEM]).encode().replace(b"FF", b"\xff"))
    rows = read(path)
    assert [r["error"] is None for r in rows] == [True, False, True]


def test_whole_documents_may_be_compressed_marked_or_empty(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "in.json.gz", "wt", encoding="utf-8-sig") as file:
        json.dump({"1": ITEM, "2": ITEM}, file)
    assert [r["document_id"] for r in read(tmp_path / "in.json.gz")] == ["1", "2"]
    assert count(str(tmp_path / "in.json.gz")) == 2
    assert read(written(tmp_path, "[\n]")) != []  # nothing that came in is lost


@pytest.mark.parametrize("form", [
    {"text": "Elsie de Wolfe", "mention": "Elsie Wolfe", "target": "Elsie de Wolfe", "start": -1, "end": -1},
    {"text": "Elsie de Wolfe", "mention": "Elsie Wolfe", "target": "Elsie de Wolfe"},
    {"sentence": "Elsie de Wolfe", "mentions": "Elsie Wolfe", "entities": "Elsie de Wolfe"},
])  # fmt: skip
def test_a_mention_that_stands_nowhere_has_no_place(tmp_path: Path, form: Row) -> None:
    """The prompt asks for the string: WikiMEL has hundreds of them."""
    (row,) = read(written(tmp_path, [form]))
    (mention,) = row["given"]
    assert row["error"] is mention["error"] is None
    assert (mention["mention"], mention["start"], mention["end"]) == ("Elsie Wolfe", None, None)
    assert mention["mention_id"] == "Elsie Wolfe"
    assert mention["target"] == "Elsie de Wolfe"
