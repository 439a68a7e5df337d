"""A row's mentions, whatever tells them: words, places, both, numbers however written, lists side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.checking import Scope, check
from gemel_ray.cli import main
from gemel_ray.readers import documents

Row = dict[str, Any]
FACES = "\U0001f600\U0001f600 Mayor in Boston today"  # Boston: characters 12-18, UTF-16 14-20, bytes 18-24


def read(folder: Path, *rows: Row) -> list[Row]:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row for table in documents(str(path)) for row in table.to_pylist()]


def one(folder: Path, mention: Any, text: str = "A street in Boston") -> Row:
    (row,) = read(folder, {"text": text, "mentions": [mention]})
    assert row["error"] is None
    (found,) = row["given"]
    return dict(found)


def spans(row: Row) -> list[tuple[str, Any, Any]]:
    assert row["error"] is None
    assert [m["error"] for m in row["given"]] == [None] * len(row["given"])
    return [(m["mention"], m["start"], m["end"]) for m in row["given"]]


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [
        (12, 18, None),
        (14, 20, "its place counts UTF-16 units"),
        (18, 24, "its place counts bytes"),
        (12, 17, "its place counts its last character"),
        (14, 19, "its place counts UTF-16 units, the last one too"),
        (18, 23, "its place counts bytes, the last one too"),
        (13, 19, "its place counts from 1"),
        (13, 18, "its place counts from 1, and its last character"),
        (11, 18, None),  # white space at the ends is nobody's
    ],
)
@pytest.mark.parametrize("form", ["ours", "official", "text", "surface"])
def test_a_mention_s_words_are_compared_with_its_place(
    tmp_path: Path, start: int, end: int, counts: str | None, form: str
) -> None:
    if form == "official":
        (row,) = read(tmp_path, {"text": FACES, "mention": "Boston", "start": start, "end": end})
        (found,) = row["given"]
    else:
        words = "mention" if form == "ours" else form
        found = one(tmp_path, {"start": start, "end": end, words: "Boston"}, FACES)
    assert (found["start"], found["end"], found["mention"]) == (12, 18, "Boston")
    assert (found["placed"], found["error"], found["mention_id"]) == (counts, None, "12-18")


def test_an_inclusive_end_is_put_right_before_punctuation_is_folded(tmp_path: Path) -> None:
    found = one(tmp_path, {"start": 4, "end": 7, "mention": "U.S."}, "The U.S. today")
    assert (found["start"], found["end"], found["placed"]) == (4, 8, "its place counts its last character")
    folded = one(tmp_path, {"start": 4, "end": 8, "mention": "US"}, "The U.S. today")
    assert (folded["start"], folded["end"], folded["mention"]) == (4, 8, "US")
    assert "'U.S.'" in folded["placed"]


@pytest.mark.parametrize(("start", "end", "there"), [(0, 5, "'"), (3, 8, "'Mayor'"), (50, 56, "outside")])
def test_a_place_that_counts_nothing_known_is_its_mention_s_error(
    tmp_path: Path, start: int, end: int, there: str
) -> None:
    found = one(tmp_path, {"start": start, "end": end, "mention": "Boston"}, FACES)
    assert found["error"].startswith(f"the mention 'Boston' is {there}")
    assert "give its place in characters, end exclusive, or its words alone" in found["error"]


def test_a_bare_place_loses_the_white_space_at_its_ends(tmp_path: Path) -> None:
    found = one(tmp_path, {"start": 11, "end": 19}, "A street in\u00a0Boston\ntoday")
    assert (found["mention"], found["start"], found["end"]) == ("Boston", 12, 18)


@pytest.mark.parametrize(
    "mention",
    [
        {"start": 12.0, "end": 18.0}, {"start": "12", "end": "18"}, {"begin": 12, "end": 18}, [12, 18],
        [12, 18, "LOC"], {"offset": 12, "length": 6}, {"span": [12, 18]}, {"start_char": 12, "end_char": 18},
        "Boston", {"mention": "Boston"}, {"start": 12, "mention": "Boston"},
        {"start": 12, "end": 18, "mention": ""}, {"mention": " Boston\n"}, {"mention": "Boston", "start": -1},
        {"mention": "Boston", "start": None, "end": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_place_is_read_however_it_is_written(tmp_path: Path, mention: Any) -> None:
    found = one(tmp_path, mention)
    assert (found["mention"], found["start"], found["end"], found["error"]) == ("Boston", 12, 18, None)


@pytest.mark.parametrize(
    ("told", "target", "target_id"),
    [
        ({"target_id": 1}, None, "1"), ({"target_id": 1.0}, None, "1"), ({"target_id": True}, None, None),
        ({"target_id": 1.5}, None, None), ({"target_id": " nil "}, None, "NIL"),
        ({"target_id": ""}, None, None), ({"target": "New\u00a0 York "}, "New York", None),
        ({"target": "Beyonce\u0301"}, "Beyonc\u00e9", None),
        ({"target": 1984}, "1984", None), ({"entity": "Q1"}, "Q1", None), ({"target": " "}, None, None),
        ({"entity": {"id": 7, "name": "Boston"}}, "Boston", "7"), ({"kb_id": "Q1"}, None, "Q1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_target_is_a_name_or_an_id_and_an_id_text_or_a_whole_number(
    tmp_path: Path, told: Row, target: str | None, target_id: str | None
) -> None:
    found = one(tmp_path, {"mention": "Boston"} | told)
    assert (found["target"], found["target_id"], found["error"]) == (target, target_id, None)


@pytest.mark.parametrize(("written", "name"), [(12.0, "12"), (12, "12"), ("12.0", "12.0"), (1.5, None)])
def test_a_document_s_id_is_text_or_a_whole_number(tmp_path: Path, written: Any, name: str | None) -> None:
    (row,) = read(tmp_path, {"id": written, "text": "a"})
    assert row["document_id"] == (name or "in.jsonl:1")


@pytest.mark.parametrize("form", ["text", "sentence"])
@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        ("A street in Boston", ["Boston"], [("Boston", 12, 18)]),
        ("Boston, then Boston again", ["Boston", "Boston"], [("Boston", 0, 6), ("Boston", 13, 19)]),
        ("New York and York", ["New York", "York"], [("New York", 0, 8), ("York", 13, 17)]),
        ("Artists of Art", ["Art"], [("Art", 11, 14)]),  # a whole word before a part of one
        ("boston", ["Boston"], [("Boston", 0, 6)]),
        ("Paris", ["Paris", "Paris"], [("Paris", 0, 5), ("Paris", None, None)]),
        ("In the rain", ["Boston"], [("Boston", None, None)]),
    ],
)
def test_words_are_found_in_their_text(
    tmp_path: Path, form: str, text: str, words: list[str], wanted: list[Any]
) -> None:
    (row,) = read(tmp_path, {form: text, "mentions": words})
    assert spans(row) == wanted


@pytest.mark.parametrize(
    ("text", "words", "there"),
    [
        ("Sir Walter, 2nd Baronet, built", "Sir Walter 2nd Baronet", "Sir Walter, 2nd Baronet"),
        ("The \u201cRediker\u2019s\u201d map", "Rediker's", "Rediker\u2019s"),
        ("Ana  de\u00a0Souza sings", "Ana de Souza", "Ana  de\u00a0Souza"),
        ("Spider\u2010Man swings", "Spider Man", "Spider\u2010Man"),
        ("The \uff21\uff22\uff23 of it", "ABC", "\uff21\uff22\uff23"),
        ("Beyonce\u0301 sings", "Beyonce", "Beyonce\u0301"),
        ("The U.S. today", "US", "U.S"),
    ],
)  # fmt: skip
def test_words_spelled_otherwise_are_found_with_the_place_of_the_real_ones(
    tmp_path: Path, text: str, words: str, there: str
) -> None:
    found = one(tmp_path, words, text)
    assert text[found["start"] : found["end"]] == there
    assert (found["mention"], found["error"]) == (words, None)
    assert repr(there) in found["placed"]


def test_letters_alone_find_no_part_of_a_word(tmp_path: Path) -> None:
    found = one(tmp_path, "to day", "in today's and daylight")
    assert (found["start"], found["end"]) == (3, 8)
    assert one(tmp_path, "to day", "Todaylight")["start"] is None


@pytest.mark.parametrize("lists", [
    {"sentence": "Miller and Okafor", "entities": ["Jane Okafor", "Rob Miller"], "answer": ["Q1", 2]},
    {"text": "Miller and Okafor", "entities": ["Jane Okafor", "Rob Miller"], "answer": ["Q1", 2]},
    {"text": "Miller and Okafor", "targets": ["Jane Okafor", "Rob Miller"], "target_ids": ["Q1", 2.0]},
])  # fmt: skip
def test_lists_side_by_side_belong_together_by_their_order(tmp_path: Path, lists: Row) -> None:
    (row,) = read(tmp_path, lists | {"mentions": ["Okafor", "Miller"]})
    assert spans(row) == [("Okafor", 11, 17), ("Miller", 0, 6)]
    told = [(m["target"], m["target_id"]) for m in row["given"]]
    assert told == [("Jane Okafor", "Q1"), ("Rob Miller", "2")]


def test_lists_of_different_lengths_are_one_error_that_names_both(tmp_path: Path) -> None:
    for form in ("text", "sentence"):
        row, after = read(
            tmp_path, {form: "a b", "mentions": ["a", "b"], "answer": ["Q1"]}, {form: "a", "mentions": ["a"]}
        )
        assert row["error"].startswith("mentions has 2 items and answer 1: lists side by side")
        assert after["error"] is None


@pytest.mark.parametrize("field", ["entities", "spans", "label", "mentions"])
def test_annotations_with_places_are_mentions(tmp_path: Path, field: str) -> None:
    places = [{"start": 0, "end": 6, "label": "LOC"}, {"start": 11, "end": 16, "label": "LOC"}]
    pairs = [[0, 6, "LOC"], [11, 16, "LOC"]]
    for listed in (places, pairs, json.dumps(places)) if field == "mentions" else (places, pairs):
        (row,) = read(tmp_path, {"text": "Boston and Gabon", field: listed})
        assert spans(row) == [("Boston", 0, 6), ("Gabon", 11, 16)]
        assert row["given"][0]["type"] == "LOC"
    (row,) = read(tmp_path, {"text": "Boston", "entities": ["Boston"]})
    assert row["given"] is None  # of names alone nobody says that they are mentions


def test_check_counts_places_that_were_found_apart_from_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(
        tmp_path,
        {"id": "a", "text": FACES, "mentions": [{"start": 14, "end": 20, "mention": "Boston"}]},
        {"id": "b", "text": "The mayor spoke.", "mentions": ["Walter Penrose"]},
    )
    path = str(tmp_path / "in.jsonl")
    found = check([path], Scope(), lambda line: None)
    assert found.clean
    assert dict(found.counts) == {"placed": 1, "unplaced": 1}
    assert found.first["placed"] == [f"{path}: a: 'Boston': its place counts UTF-16 units"]
    assert "'Walter Penrose': its words are not in the text" in found.first["unplaced"][0]
    assert main(["check", path]) == 0
    told = capsys.readouterr().out
    assert "nothing found" in told
    assert "1 mentions whose words are not in their text: they are linked without a place" in told
