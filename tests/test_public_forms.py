"""Data sets in the form in which they are published: three rows of each, written here by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.readers import documents

Row = dict[str, Any]
WORDS = ("One street in Boston.", 'Two "quoted" words', "Three, with a comma")
URLS = tuple(f"https://images.example.org/{n}" for n in (1, 2, 3))
FILES = ("1.jpg", "2.jpg", "3.jpg")


def read(path: Path) -> list[Row]:
    return [row for table in documents(str(path)) for row in table.to_pylist()]


def pairs(path: Path) -> list[tuple[str, Any]]:
    rows = read(path)
    assert [r["error"] for r in rows] == [None] * len(rows)
    return [(r["text"], r["image"] or r["image_address"]) for r in rows]


def put(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def lines(path: Path, rows: list[Row]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows))


def table(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def here(folder: Path) -> list[tuple[str, Any]]:
    return [(text, f"{folder}/{name}") for text, name in zip(WORDS, FILES, strict=True)]


ON_THE_WEB = list(zip(WORDS, URLS, strict=True))


def test_conceptual_captions_are_read(tmp_path: Path) -> None:
    """CC3M: caption and URL; CC12M: URL and caption; neither has a header."""
    cc3m = "".join(f"{text}\t{url}\n" for text, url in ON_THE_WEB)
    cc12m = "".join(f"{url}\t{text}\n" for text, url in ON_THE_WEB)
    assert pairs(put(tmp_path / "Train_GCC-training.tsv", cc3m)) == ON_THE_WEB
    assert pairs(put(tmp_path / "cc12m.tsv", cc12m)) == ON_THE_WEB


def test_wikipedia_image_text_is_read(tmp_path: Path) -> None:
    """WIT: the reference description, else the alternative text, else the attribution."""
    captions = (
        "caption_reference_description",
        "caption_alt_text_description",
        "caption_attribution_description",
    )
    rows = [
        {
            "language": "en",
            "page_url": "https://en.wikipedia.org/wiki/Boston",
            "image_url": url,
            "page_title": "Boston",
            **dict.fromkeys(captions, ""),
            name: text,
            "mime_type": "image/jpeg",
            "original_height": 5,
            "original_width": 7,
            "context_page_description": "Boston is a city.",
        }
        for name, (text, url) in zip(captions, ON_THE_WEB, strict=True)
    ]
    assert pairs(table(tmp_path / "wit_v1.train.all-00000-of-00010.tsv", rows)) == ON_THE_WEB


def test_sbu_captions_are_read(tmp_path: Path) -> None:
    lists = {"image_urls": URLS, "user_ids": ["a", "b", "c"], "captions": WORDS}
    assert pairs(put(tmp_path / "sbu-captions-all.json", lists)) == ON_THE_WEB


@pytest.mark.parametrize("folder", [None, "val2014"])
def test_karpathy_s_splits_are_read(tmp_path: Path, folder: str | None) -> None:
    """Of COCO with the folder of each picture, of Flickr30k without: the first of its sentences."""
    images = [
        {
            "filename": name,
            "imgid": n,
            "split": "test",
            "sentids": [2 * n, 2 * n + 1],
            "sentences": [
                {"raw": text, "tokens": text.split(), "imgid": n},
                {"raw": "Another.", "tokens": ["another"]},
            ],
        }
        | ({"filepath": folder} if folder else {})
        for n, (name, text) in enumerate(zip(FILES, WORDS, strict=True))
    ]
    found = pairs(put(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"}))
    assert found == here(tmp_path / folder if folder else tmp_path)


def test_textcaps_is_read(tmp_path: Path) -> None:
    data = [
        {
            "image_id": str(n),
            "image_classes": ["Street"],
            "flickr_original_url": f"{url}_o.jpg",
            "image_width": 5,
            "set_name": "train",
            "image_name": str(n),
            "image_path": f"train/{n}",
            "caption_id": n,
            "caption_str": text,
            "reference_strs": [text, "Another."],
        }
        for n, (text, url) in enumerate(ON_THE_WEB)
    ]
    whole = {"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": "0.1", "data": data}
    found = pairs(put(tmp_path / "TextCaps_0.1_train.json", whole))
    assert found == [(text, f"{url}_o.jpg") for text, url in ON_THE_WEB]


def test_localized_narratives_are_read(tmp_path: Path) -> None:
    """Its pictures are told by an id alone."""
    rows = [
        {
            "dataset_id": "mscoco_val2017",
            "image_id": str(n),
            "annotator_id": 3,
            "caption": text,
            "timed_caption": [{"utterance": "One", "start_time": 0.0, "end_time": 0.5}],
            "traces": [[]],
            "voice_recording": f"coco_val/{n}.ogg",
        }
        for n, text in enumerate(WORDS)
    ]
    path = lines(tmp_path / "coco_val_captions.jsonl", rows)
    assert pairs(path) == [(text, None) for text in WORDS]
    assert read(path)[0]["unread"].split() == [
        "dataset_id",
        "image_id",
        "annotator_id",
        "timed_caption",
        "traces",
        "voice_recording",
    ]


def test_docci_is_read(tmp_path: Path) -> None:
    rows = [
        {"example_id": f"test_{n}", "split": "test", "image_file": name, "description": text}
        for n, (text, name) in enumerate(zip(WORDS, FILES, strict=True))
    ]
    assert pairs(lines(tmp_path / "docci_descriptions.jsonlines", rows)) == here(tmp_path)


def test_unsplash_is_read(tmp_path: Path) -> None:
    """photo_url is the page."""
    rows = [
        {
            "photo_id": str(n),
            "photo_url": f"https://example.org/photos/{n}",
            "photo_image_url": url,
            "photo_description": text if n else "",
            "ai_description": "" if n else text,
        }
        for n, (text, url) in enumerate(ON_THE_WEB)
    ]
    assert pairs(table(tmp_path / "photos.tsv", rows)) == ON_THE_WEB


def test_pixelprose_is_read(tmp_path: Path) -> None:
    rows = [
        {
            "uid": f"u{n}",
            "url": url,
            "key": f"{n:09}",
            "status": "success",
            "original_caption": text,
            "vlm_model": "m",
            "vlm_caption": "This image displays",
            "width": 5,
            "height": 7,
            "sha256": "s",
        }
        for n, (text, url) in enumerate(ON_THE_WEB)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "vlm_captions_cc12m_00.parquet")
    assert pairs(tmp_path / "vlm_captions_cc12m_00.parquet") == ON_THE_WEB


def test_image_columns_of_the_hub_with_several_captions_are_read(tmp_path: Path) -> None:
    """Flickr30k as it is on the hub."""
    rows = [
        {
            "image": {"bytes": b"\xff\xd8\xff" + name.encode(), "path": name},
            "caption": [text, "Another."],
            "sentids": ["0", "1"],
            "split": "test",
            "img_id": "0",
            "filename": name,
        }
        for text, name in zip(WORDS, FILES, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    found = pairs(tmp_path / "test-00000-of-00001.parquet")
    assert found == [(text, b"\xff\xd8\xff" + name.encode()) for text, name in zip(WORDS, FILES, strict=True)]


LINKS = [
    ("A street in Boston, in the rain.", "Boston", "Boston"),
    ("Paris is here", "Paris", "Paris, Texas"),
    ("The end of Gabon", "Gabon", "Gabon"),
]


def told(path: Path) -> list[tuple[Any, ...]]:
    rows = read(path)
    assert [r["error"] for r in rows] == [None] * len(rows)
    given = [r["given"][0] for r in rows]
    assert [r["text"][m["start"] : m["end"]] for r, m in zip(rows, given, strict=True)] == [
        m["mention"] for m in given
    ]
    return [(r["text"], m["mention"], m["target"]) for r, m in zip(rows, given, strict=True)]


@pytest.mark.parametrize("title", ["label_title", "Wikipedia_title"])
@pytest.mark.parametrize("space", ["", " "])
def test_blink_s_contexts_around_the_mention_are_one_text(tmp_path: Path, title: str, space: str) -> None:
    rows = []
    for n, (text, words, target) in enumerate(LINKS):
        left, _, right = text.partition(words)
        rows.append(
            {
                "context_left": left.rstrip() + (space if left else ""),
                "mention": words,
                title: target,
                "label_id": n,
                "context_right": right if space or not right.startswith(" ") else right[1:],
                "label": "its description",
                "world": "w",
            }
        )
    assert told(lines(tmp_path / "train.jsonl", rows)) == LINKS


def test_kilt_is_read(tmp_path: Path) -> None:
    """AIDA, WNED and the Wikipedia links in KILT's form."""
    rows = [
        {
            "id": str(n),
            "input": text.replace(words, f"[START_ENT] {words} [END_ENT]"),
            "output": [
                {"provenance": []},
                {"answer": target, "provenance": [{"wikipedia_id": "1", "title": target}]},
            ],
            "meta": {"left_context": "A", "mention": words, "right_context": "b"},
        }
        for n, (text, words, target) in enumerate(LINKS)
    ]
    found = told(lines(tmp_path / "aidayago2-dev-kilt.jsonl", rows))
    assert found == [(text.replace("Boston,", "Boston,"), words, target) for text, words, target in LINKS]
    (alone,) = read(
        lines(tmp_path / "test.jsonl", [{"id": "1", "input": "[START_ENT] Paris [END_ENT] here"}])
    )
    assert (alone["document_id"], alone["text"], alone["given"][0]["target"]) == ("1", "Paris here", None)


NOT_READ: dict[str, tuple[Row, str]] = {
    "Zeshel's mentions": (
        {
            "mention_id": "m",
            "context_document_id": "d",
            "start_index": 1,
            "end_index": 1,
            "text": "Boston",
            "label_document_id": "e",
            "corpus": "c",
            "category": "LOW_OVERLAP",
        },
        "its text is a document of another file (context_document_id), which is not read",
    ),
    "OBELICS": (
        {
            "images": ["https://e.org/a.jpg", None],
            "texts": [None, "One."],
            "metadata": "[]",
            "general_metadata": "{}",
        },
        "there is no field text or caption; the fields are 'images', 'texts', 'metadata', 'general_metadata'",
    ),
    "MMC4": (
        {"url": "https://e.org", "text_list": ["One."], "image_info": [{"raw_url": "https://e.org/a.jpg"}]},
        "there is no field text or caption; the fields are 'url', 'text_list', 'image_info'",
    ),
    "LLaVA's conversations": (
        {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
        "there is no field text or caption; the fields are 'id', 'image', 'conversations'",
    ),
    "Visual Genome's regions": (
        {"id": 1, "regions": [{"region_id": 5, "phrase": "a clock", "image_id": 1, "x": 1, "y": 2}]},
        "there is no field text or caption; the fields are 'id', 'regions'",
    ),
}


@pytest.mark.parametrize("what", NOT_READ)
def test_what_is_not_read_says_why_in_a_sentence(tmp_path: Path, what: str) -> None:
    row, says = NOT_READ[what]
    for rows in (read(lines(tmp_path / "in.jsonl", [row] * 3)), read(put(tmp_path / "in.json", [row] * 3))):
        assert len(rows) == 3
        assert all(says in r["error"] for r in rows)
