"""Tables that people make themselves: a row a mention, under the names that they use."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.readers import documents, first_look

CAPTION = "Apple opened a shop in New York."


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for table in documents(str(path)) for row in table.to_pylist()]


def one(folder: Path, **cells: str) -> dict[str, Any]:
    """The document of a CSV file with one row."""
    with (folder / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([cells.keys(), cells.values()])
    (document,) = rows(folder / "own.csv")
    assert document["error"] is None
    return document


def test_a_table_of_captions_and_mentions_is_read(tmp_path: Path) -> None:
    document = one(tmp_path, caption=CAPTION, image="a.jpg", mention="Apple", entity="Apple Inc.", qid="Q312")
    assert document["text"] == CAPTION
    assert document["image_address"] == f"{tmp_path}/a.jpg"
    assert document["unread"] is None
    (given,) = document["given"]
    assert (given["start"], given["end"], given["target"], given["target_id"]) == (0, 5, "Apple Inc.", "Q312")


def test_the_url_beside_a_caption_and_a_mention_is_the_pictures(tmp_path: Path) -> None:
    document = one(tmp_path, caption=CAPTION, url="https://example.org/7", mention="Apple")
    assert document["image_address"] == "https://example.org/7"


def test_what_may_describe_the_row_is_reported_and_not_taken_for_the_mentions(tmp_path: Path) -> None:
    document = one(tmp_path, caption=CAPTION, title="The news", label="business", mention="Apple")
    assert set(document["unread"].split()) == {"title", "label"}
    assert document["given"][0]["target"] is None


def test_parquet_with_the_same_columns_is_read(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"caption": [CAPTION], "mention": ["Apple"], "entity_name": ["Apple Inc."]}),
        tmp_path / "a.parquet",
    )
    (document,) = rows(tmp_path / "a.parquet")
    assert [m["target"] for m in document["given"]] == ["Apple Inc."]


@pytest.mark.parametrize(
    ("cell", "entities"),
    [
        ("Apple; New York", "Apple Inc.; New York City"),
        ("Apple|New York", "Apple Inc.|New York City"),
        ('["Apple", "New York"]', '["Apple Inc.", "New York City"]'),
    ],
)
def test_a_cell_may_have_several_mentions(tmp_path: Path, cell: str, entities: str) -> None:
    given = one(tmp_path, text=CAPTION, mentions=cell, entities=entities)["given"]
    assert [(m["mention"], m["start"], m["target"]) for m in given] == [
        ("Apple", 0, "Apple Inc."),
        ("New York", 23, "New York City"),
    ]


def test_a_single_text_beside_several_mentions_is_not_a_list(tmp_path: Path) -> None:
    given = one(tmp_path, text=CAPTION, mentions="Apple; New York", answer="yes; no; perhaps")["given"]
    assert [m["target_id"] for m in given] == [None, None]


def test_words_that_are_in_the_text_with_their_semicolon_are_one_mention(tmp_path: Path) -> None:
    assert len(one(tmp_path, text="Steins;Gate is out.", mentions="Steins;Gate")["given"]) == 1


def test_a_header_in_capitals_is_read(tmp_path: Path) -> None:
    document = one(tmp_path, Caption=CAPTION, Image="a.jpg", Mention="Apple", ENTITY="Apple Inc.")
    assert (document["unread"], document["image_address"]) == (None, f"{tmp_path}/a.jpg")
    assert [m["target"] for m in document["given"]] == ["Apple Inc."]


def test_what_cannot_be_read_is_reported_before_the_job(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("title,image\nApple in New York,a.jpg\n")
    (said,) = first_look([str(tmp_path / "own.csv")])
    assert "of the first 1 documents: 1 cannot be read: the text is empty: there is no field text" in said
