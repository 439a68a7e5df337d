"""The only door in: whatever a file holds, each of its rows is a document, good or with its reason."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from gemel_ray.readers import BATCH, count, documents, files, forms
from gemel_ray.readers.json_files import is_whole
from gemel_ray.records import DOCUMENT

Row = dict[str, Any]
TEXT = "Adobe and Google met in Paris."
ADOBE = {"start": 0, "end": 5}


def read(path: Path | str, **options: Any) -> list[Row]:
    """All documents of a file, each table checked for its schema."""
    rows: list[Row] = []
    for table in documents(str(path), **options):
        assert table.schema == DOCUMENT
        assert 0 < len(table) <= options.get("batch", BATCH)
        table.validate(full=True)
        rows += table.to_pylist()
    return rows


def lines(folder: Path, *raw: Any, name: str = "in.jsonl") -> Path:
    """A file of JSON lines; what is no string is spelled as JSON."""
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in raw))
    return path


def unplaced(rows: list[Row]) -> list[Row]:
    """Without the file they came from."""
    return [row | {"source": None} for row in rows]


def one(folder: Path, raw: Any, **options: Any) -> Row:
    (row,) = read(lines(folder, raw), **options)
    return row


def own(**fields: Any) -> Row:
    return {"id": "d", "text": TEXT, "mentions": [ADOBE]} | fields


def official(**fields: Any) -> Row:
    return {"text": TEXT, "mention": "Google", "target": "Google LLC", "golden": "Q95"} | fields


def spans(row: Row) -> list[tuple[Any, ...]]:
    return [(m["start"], m["end"], m["mention"]) for m in row["given"]]


def fine(row: Row) -> Row:
    """A row without an error, of its own or of a mention."""
    assert row["error"] is None
    assert all(m["error"] is None for m in row["given"] or [])
    return row


# Our own form


def test_our_own_form_keeps_every_field(tmp_path: Path) -> None:
    extra = {"target_id": "Q11463", "type": "company"}
    row = fine(
        one(tmp_path, own(mentions=[ADOBE | {"target": "Adobe Inc."} | extra, {"start": 10, "end": 16}]))
    )
    assert (row["document_id"], row["text"], row["image"], row["image_address"]) == ("d", TEXT, None, None)
    assert row["given"] == [
        {
            "mention_id": "0-5",
            "mention": "Adobe",
            "start": 0,
            "end": 5,
            "target": "Adobe Inc.",
            "placed": None,
            "error": None,
        }
        | extra,
        {"mention_id": "10-16", "mention": "Google", "start": 10, "end": 16, "target": None}
        | dict.fromkeys(("placed", "error", *extra)),
    ]


def test_without_mentions_they_are_to_be_found(tmp_path: Path) -> None:
    assert fine(one(tmp_path, {"text": TEXT}))["given"] is None
    assert fine(one(tmp_path, {"text": TEXT, "mentions": None}))["given"] is None
    assert fine(one(tmp_path, {"text": TEXT, "mentions": []}))["given"] == []


def test_spans_count_characters_not_bytes(tmp_path: Path) -> None:
    text = "𝄞 한국 e\u0301 👩‍🚀"
    row = fine(one(tmp_path, own(text=text, mentions=[{"start": 2, "end": 4}, {"start": 8, "end": 11}])))
    assert spans(row) == [(2, 4, "한국"), (8, 11, "👩‍🚀")]


@pytest.mark.parametrize(("image", "address"), [
    ("a.jpg", "FOLDER/a.jpg"), ("pictures/a.jpg", "FOLDER/pictures/a.jpg"),
    ("../a.jpg", "FOLDER/../a.jpg"), ("/tmp/a.jpg", "/tmp/a.jpg"),
    ("https://example.org/a.jpg?b=c#d", "https://example.org/a.jpg?b=c#d"), ("s3://bucket/a.jpg",) * 2,
    ("what is it? [1] 100% #2.jpg", "FOLDER/what is it? [1] 100% #2.jpg"), (None, None),
])  # fmt: skip
def test_pictures_stand_relative_to_the_file(tmp_path: Path, image: str | None, address: str | None) -> None:
    row = fine(one(tmp_path, own(image=image)))
    assert row["image"] is None
    assert row["image_address"] == (address and address.replace("FOLDER", str(tmp_path)))


def test_a_picture_is_found_beside_a_file_named_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path, own(image="a.jpg"))
    (tmp_path / "a.jpg").write_bytes(b"picture")
    monkeypatch.chdir(tmp_path)
    (row,) = read("in.jsonl")
    assert Path(row["image_address"]).read_bytes() == b"picture"


@pytest.mark.parametrize("image", [5, True, {"width": 5}, 1.5, [7]])
def test_what_is_no_picture_is_said(tmp_path: Path, image: Any) -> None:
    assert "image cannot be" in one(tmp_path, own(image=image))["error"]


# The official form


def test_a_row_of_the_official_form_is_a_document_of_one_mention(tmp_path: Path) -> None:
    row = fine(one(tmp_path, official()))
    assert row["document_id"] == "in.jsonl:1"
    assert row["given"] == [
        {"mention_id": "10-16", "mention": "Google", "start": 10, "end": 16, "target": "Google LLC"}
        | {"target_id": "Q95", "type": None, "placed": None, "error": None}
    ]


def test_the_official_form_may_have_an_id_and_a_place(tmp_path: Path) -> None:
    row = fine(one(tmp_path, official(id="q7", text="Paris and Paris", mention="Paris", start=10, end=15)))
    assert row["document_id"] == "q7"
    assert spans(row) == [(10, 15, "Paris")]


def test_a_mention_of_the_official_form_is_found_in_another_case(tmp_path: Path) -> None:
    """The mention stands in the prompt as the file spells it."""
    assert spans(fine(one(tmp_path, official(mention="google")))) == [(10, 16, "google")]


def test_a_mention_in_another_case_is_found_behind_letters_that_grow(tmp_path: Path) -> None:
    """İ has two characters in lower case: the place must still be counted in the text as it is."""
    row = fine(one(tmp_path, official(text="İİİ met ADOBE here", mention="Adobe")))
    assert spans(row) == [(8, 13, "Adobe")]


def test_official_nil_has_no_target(tmp_path: Path) -> None:
    row = fine(one(tmp_path, official(golden="NIL", target="nobody")))
    assert (row["given"][0]["target"], row["given"][0]["target_id"]) == (None, "NIL")


def test_official_place_may_be_null(tmp_path: Path) -> None:
    """As it is wherever a table has these columns for some of its rows."""
    assert spans(fine(one(tmp_path, official(start=None, end=None)))) == [(10, 16, "Google")]


def test_official_picture_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    assert one(tmp_path, official(img_name="a.jpg"))["image_address"] == f"{tmp_path}/a.jpg"
    assert fine(one(tmp_path, official(img_name="b.jpg")))["image_address"] is None
    assert fine(one(tmp_path, official(img_name=None)))["image_address"] is None


@pytest.mark.parametrize("name", ["what?.jpg", "[1].jpg", "a*b.jpg", "100%.jpg", "a#b.jpg", "ä 1.jpg"])
@pytest.mark.parametrize("there", [True, False])
def test_an_official_picture_may_have_any_name(tmp_path: Path, name: str, there: bool) -> None:
    """Names of pictures come from titles of web pages; none of their characters means a pattern."""
    if there:
        (tmp_path / name).write_bytes(b"picture")
    row = fine(one(tmp_path, official(img_name=name)))
    assert row["image_address"] == (f"{tmp_path}/{name}" if there else None)


def test_official_url_is_a_key_unless_it_is_to_be_fetched(tmp_path: Path) -> None:
    raw = official(img_url="https://example.org/a.jpg")
    assert fine(one(tmp_path, raw))["image_address"] is None
    assert one(tmp_path, raw, fetch_official_images=True)["image_address"] == "https://example.org/a.jpg"


# Identifiers


@pytest.mark.parametrize(("given_id", "made"), [
    ("x", "x"), (7, "7"), (0, "0"), ("한 1", "한 1"), (None, "in.jsonl:1"), ("\ud800", "in.jsonl:1"),
    ("", "in.jsonl:1"), (2**70, str(2**70)),
])  # fmt: skip
def test_an_id_is_the_given_one_as_text_or_the_place_in_the_file(
    tmp_path: Path, given_id: Any, made: str
) -> None:
    assert fine(one(tmp_path, own(id=given_id)))["document_id"] == made


def test_an_id_stays_with_a_document_in_error(tmp_path: Path) -> None:
    assert one(tmp_path, own(id="mine", text=""))["document_id"] == "mine"


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = lines(tmp_path, {"text": "a"}, "", "   ", {"text": "b"}, "no JSON", name="some.json")
    assert [r["document_id"] for r in read(path)] == ["some.json:1", "some.json:4", "some.json:5"]


def test_equal_ids_are_two_documents(tmp_path: Path) -> None:
    assert [r["document_id"] for r in read(lines(tmp_path, own(), own()))] == ["d", "d"]


# What is wrong, each with its own words

WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (
        '{"id": "cut',
        r"line 1 is not JSON: Invalid control character at character 12, near '.*cut'",
    ),
    "no object": ([1, 2], r"line 1 is not a JSON object.*: '\[1, 2\]'"),
    "a bare string": ('"text"', "line 1 is not a JSON object"),
    "deep": ("[" * 100_000 + "]" * 100_000, "line 1 is not JSON: .*recursion"),
    "a huge number": ("9" * 10_000, "line 1 is not JSON: .*digits"),
    "no text": ({"id": "d"}, "the text is empty"),
    "empty text": (own(text=""), "the text is empty"),
    "blank text": (own(text=" \n\u3000"), "the text is empty"),
    "null text": (own(text=None), "the text is empty: text is null"),
    "text of a wrong type": (own(text=5), "text cannot be 5"),
    "text that is true": (own(text=True), "text cannot be True"),
    "half a surrogate pair": (own(text="a \ud800 b"), "not valid Unicode"),
    "mentions of a wrong type": (own(mentions=5), "mentions is a list of mentions, not 5"),
    "mentions as an object": (own(mentions=ADOBE), "mentions is a list of mentions, not {'start'"),
    "official mention empty": (official(mention=""), "the mention is empty"),
    "official mention null": (official(mention=None), "the mention is empty"),
    "official mention of a wrong type": (official(mention=["Google"]), r"text, not \['Google'\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_document_says_what_is_wrong_and_its_neighbours_live(tmp_path: Path, what: str) -> None:
    raw, message = WRONG[what]
    before, row, after = read(lines(tmp_path, own(id="before"), raw, own(id="after")))
    assert row["error"] is not None
    assert re.search(message.replace("line 1", "line 2"), row["error"])
    assert (row["text"], row["given"]) == (None, None)
    assert [fine(before)["document_id"], fine(after)["document_id"]] == ["before", "after"]


WRONG_MENTIONS: dict[str, tuple[Any, str]] = {
    "behind its text": ({"start": 25, "end": 400}, "25-400 is outside its text of 30 characters"),
    "before its text": ({"start": -3, "end": 2}, "-3-2 is outside"),
    "the wrong way round": ({"start": 5, "end": 2}, "5-2 is outside"),
    "empty": ({"start": 5, "end": 5}, "5-5 is outside"),
    "as large as int32": ({"start": 0, "end": 2**31 - 1}, "outside"),
    "larger than int32": ({"start": 0, "end": 2**31}, "an object with start and end"),
    "huge": ({"start": 0, "end": 10**300}, "an object with start and end"),
    "of broken numbers": ({"start": 0.5, "end": 5.5}, "an object with start and end"),
    "of booleans": ({"start": False, "end": True}, "an object with start and end"),
    "of words": ({"start": "zero", "end": "five"}, "an object with start and end"),
    "without an end": ({"start": 0}, "an object with start and end"),
    "an empty string": (" ", "the mention is empty"),
    "a number": (5, "its words or an object with start and end, not 5"),
    "words of a wrong type": ({"mention": ["Adobe"]}, r"the words of a mention are text, not \['Adobe'\]"),
    "null": (None, "an object with start and end, not None"),
    "a pair outside": ([0, 500], "0-500 is outside"),
    "nothing but white space": ({"start": 5, "end": 6}, "5-6 is nothing but white space"),
}


@pytest.mark.parametrize("what", WRONG_MENTIONS)
def test_a_wrong_mention_says_so_and_the_others_live(tmp_path: Path, what: str) -> None:
    raw, message = WRONG_MENTIONS[what]
    row = one(tmp_path, own(mentions=[ADOBE, raw, {"start": 10, "end": 16}]))
    assert row["error"] is None
    first, bad, last = row["given"]
    assert [(m["mention"], m["error"]) for m in (first, last)] == [("Adobe", None), ("Google", None)]
    assert bad["mention"] is None
    assert re.search(message, bad["error"])
    assert bad["mention_id"]


def test_a_span_given_twice_is_linked_once(tmp_path: Path) -> None:
    row = one(tmp_path, own(mentions=[ADOBE, {"start": 10, "end": 16}, ADOBE, ADOBE]))
    twice = "the mention 'Adobe' is given twice (in.jsonl:1)"
    assert [m["error"] for m in row["given"]] == [None, None, twice, twice]


def test_an_official_span_that_is_not_in_its_text_is_that_mention_s_error(tmp_path: Path) -> None:
    row = one(tmp_path, official(start=28, end=34))
    assert "outside" in row["given"][0]["error"]


@pytest.mark.parametrize("raw", [
    own(mentions=[ADOBE | {"target": "\ud800"}]), own(image="\udfff.jpg"),
    official(target="\ud800"), official(mention="\ud800", start=0, end=5), official(img_name="\ud800.jpg"),
    own(id="\ud800", text="a"), own(mentions=["\ud800"]), own(mentions=[{"start": "\ud800"}]), {"\ud800": 1},
], ids=lambda raw: json.dumps(raw)[:60])  # fmt: skip
def test_half_a_surrogate_pair_anywhere_costs_no_other_row(tmp_path: Path, raw: Row) -> None:
    """JSON can spell it, Arrow cannot hold it."""
    rows = read(lines(tmp_path, own(id="before"), raw, own(id="after")))
    assert len(rows) == 3
    assert [fine(rows[i])["document_id"] for i in (0, 2)] == ["before", "after"]


def test_half_a_surrogate_pair_in_a_url_costs_no_other_row(tmp_path: Path) -> None:
    raw = official(img_url="https://example.org/\ud800")
    assert len(read(lines(tmp_path, own(), raw, own()), fetch_official_images=True)) == 3


@pytest.mark.parametrize("depth", [400, 900, 950, 980, 985, 990, 995, 1000, 2000])
@pytest.mark.parametrize(
    "field", ["id", "text", "mentions", "image", "mention", "images", "file_name", "thumb"]
)
def test_deep_values_cost_no_other_row(tmp_path: Path, depth: int, field: str) -> None:
    """Around the depth that Python's JSON still reads: what it has read must also bear being shown."""
    value = "[" * depth + "]" * depth
    raw = f'{{"id": "d", "text": "abc", "{field}": {value}}}'
    rows = read(lines(tmp_path, own(id="before"), raw, own(id="after")))
    assert [rows[0]["document_id"], rows[2]["document_id"]] == ["before", "after"]
    assert len(rows) == 3


def test_bytes_that_are_not_text_cost_their_line_only(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff\xfe"}\n\x00\n\xef\xbb\xbf{"text": "b"}\n')
    good, bad, nul, marked = read(path)
    assert "line 2 is not JSON" in bad["error"]
    assert "line 3 is not JSON" in nul["error"]
    assert (good["text"], marked["text"]) == ("a", "b")


def test_a_file_needs_no_line_break_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\r\n{"text": "b"}')
    assert [r["text"] for r in read(path)] == ["a", "b"]


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n \n")
    assert read(tmp_path / "in.jsonl") == []


# Any JSON at all

odd = st.sampled_from(
    ["\ud800", "\udfff.jpg", "a*b", "a\x00", TEXT, "Adobe", "a.jpg", "NIL", "https://e.org/\ud800"]
)
scalars = st.none() | st.booleans() | st.floats() | st.integers(-(2**80), 2**80) | st.text(max_size=8) | odd
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)
FIELDS = ["id", "text", "mention", "mentions", "target", "golden", "start", "end", "image"]
FIELDS += ["img_url", "img_name"]
place = st.integers(-1, 40) | values
mention = st.fixed_dictionaries({}, optional={"start": place, "end": place, "target": odd | values})
rows_like = st.dictionaries(st.sampled_from(FIELDS), values) | st.fixed_dictionaries(
    {"text": st.just(TEXT)},
    optional={name: odd | values for name in FIELDS if name != "text"}
    | {"mention": st.just("Adobe") | odd, "mentions": st.lists(mention | values, max_size=4)}
    | {"start": place, "end": place},
)
generous = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@generous
@given(raws=st.lists(rows_like | values, max_size=6), escaped=st.booleans(), fetch=st.booleans())
@example(raws=[{"text": "a", "id": {"a": []}}], escaped=True, fetch=False)
@example(raws=[["a", None, None, []]], escaped=True, fetch=False)
def test_any_json_is_one_document_a_line(raws: list[Any], escaped: bool, fetch: bool) -> None:
    spelled = [json.dumps(raw) for raw in raws]
    if not escaped:
        spelled = [json.dumps(raw, ensure_ascii=False).encode(errors="replace").decode() for raw in raws]
    with tempfile.TemporaryDirectory() as folder:
        path = lines(Path(folder), *spelled)
        assume(len(raws) > 1 or not is_whole(str(path)))  # one array: one JSON document, see test_readers.py
        rows = read(path, fetch_official_images=fetch)
        assert len(rows) == len(raws) == count(str(path))
    for row, raw in zip(rows, raws, strict=True):
        assert row["document_id"]
        assert (row["error"] is None) == (row["text"] is not None)
        if row["error"] is not None:
            continue
        assert isinstance(raw, dict) or forms.wikidiverse_fits(raw)
        for made in row["given"] or []:
            assert (made["error"] is None) == (made["mention"] is not None)
            if made["error"] is None and made["start"] is None:
                assert not re.search(re.escape(made["mention"]), row["text"], re.IGNORECASE)
            elif made["error"] is None:
                assert 0 <= made["start"] < made["end"] <= len(row["text"])


@generous
@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=8))
@example([codecs.BOM_UTF8])
@example([codecs.BOM_UTF8 + b"1", b"", b"2"])
def test_any_bytes_are_one_document_a_line(raws: list[bytes]) -> None:
    """A byte-order mark at the beginning is not content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_bytes(content := b"\n".join(raws))
        assume(not is_whole(str(path)))
        written = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
        assert len(read(path)) == sum(bool(raw.strip()) for raw in written) == count(str(path))


# Parquet


def parquet(folder: Path, rows: list[Row], schema: pa.Schema | None = None, **options: Any) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def test_parquet_is_as_json_lines(tmp_path: Path) -> None:
    raws = [own(id=str(i), image="a.jpg", mentions=[ADOBE | {"target": "Adobe"}]) for i in range(3)]
    assert unplaced(read(parquet(tmp_path, raws))) == unplaced(read(lines(tmp_path, *raws)))


def test_parquet_in_the_official_form_is_as_json_lines(tmp_path: Path) -> None:
    raws = [official(id=str(i), start=10, end=16) for i in range(3)]
    assert unplaced(read(parquet(tmp_path, raws))) == unplaced(read(lines(tmp_path, *raws)))


def test_parquet_may_have_places_in_some_rows_only(tmp_path: Path) -> None:
    """Columns cannot be absent from single rows: there they are null."""
    raws = [official(id="a", start=10, end=16), official(id="b")]
    assert [spans(fine(r)) for r in read(parquet(tmp_path, raws))] == [[(10, 16, "Google")]] * 2


@pytest.mark.parametrize("image", [
    b"picture", {"bytes": b"picture", "path": None}, {"bytes": b"picture", "path": "a.jpg"},
], ids=str)  # fmt: skip
def test_parquet_holds_pictures(tmp_path: Path, image: Any) -> None:
    (row,) = read(parquet(tmp_path, [own(image=image)]))
    assert (fine(row)["image"], row["image_address"]) == (b"picture", None)


def test_parquet_holds_paths_of_pictures(tmp_path: Path) -> None:
    (row,) = read(parquet(tmp_path, [own(image={"bytes": None, "path": "a.jpg"})]))
    assert (row["image"], row["image_address"]) == (None, f"{tmp_path}/a.jpg")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("text", pa.string()), ("image", image)])
    (row,) = read(parquet(tmp_path, [{"text": "a", "image": {"bytes": None, "path": None}}], schema))
    assert (fine(row)["image"], row["image_address"]) == (None, None)


def test_parquet_rows_are_numbered_across_batches(tmp_path: Path) -> None:
    rows = read(parquet(tmp_path, [{"text": f"text {i}"} for i in range(2 * BATCH + 5)]))
    assert [r["document_id"] for r in rows] == [f"in.parquet:{i}" for i in range(1, 2 * BATCH + 6)]


def test_parquet_of_wrong_types_says_so_in_each_row(tmp_path: Path) -> None:
    rows = read(parquet(tmp_path, [{"text": 1, "id": "a"}, {"text": 2, "id": "b"}]))
    assert [(r["document_id"], r["error"]) for r in rows] == [
        ("a", "text cannot be 1 (in.parquet:1)"),
        ("b", "text cannot be 2 (in.parquet:2)"),
    ]


def test_parquet_without_rows_has_no_documents(tmp_path: Path) -> None:
    assert read(parquet(tmp_path, [], pa.schema([("text", pa.string())]))) == []


def test_parquet_text_that_is_no_unicode_costs_no_other_row(tmp_path: Path) -> None:
    """Arrow writes a string column without looking at it, and many tools do."""
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": text}), path)
    rows = read(path)
    assert [r["error"] is None for r in rows] == [True, False, True]
    assert [rows[i]["document_id"] for i in (0, 2)] == ["a", "c"]
    assert rows[1]["document_id"] in ("b", "in.parquet:2")


# Files that cannot be read


def test_truncated_parquet_is_one_document_with_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path, [own(id=str(i)) for i in range(100)])
    path.write_bytes(path.read_bytes()[:-200])
    (row,) = read(path)
    assert row["document_id"] == "in.parquet"
    assert row["error"].startswith(f"cannot read {path}: ")
    assert "\n" not in row["error"]


def test_parquet_broken_in_the_middle_gives_what_stands_before(tmp_path: Path) -> None:
    raws = [{"id": str(i), "text": f"text {i} {i * 7919 % 1009}"} for i in range(3 * BATCH)]
    path = parquet(tmp_path, raws, row_group_size=BATCH, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    whole = bytearray(path.read_bytes())
    whole[start + 60 : start + 200] = bytes(140)
    path.write_bytes(whole)
    rows = read(path)
    assert [r["document_id"] for r in rows[:BATCH]] == [r["id"] for r in raws[:BATCH]]
    assert rows[-1]["error"].startswith("cannot read")
    assert all(r["error"] is None for r in rows[:-1])


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"this is no Parquet file at all\n", b"PAR1" + bytes(50) + b"PAR1"]
)
def test_what_is_no_parquet_is_one_document_with_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(content)
    (row,) = read(path)
    assert row["error"].startswith("cannot read")


def test_truncated_gzip_gives_what_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    raws = [own(id=str(i), text=f"Adobe {i} {i * 7919 % 10007}") for i in range(20_000)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(raw) + "\n" for raw in raws)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows = read(path)
    assert len(rows) > 1000
    assert [r["document_id"] for r in rows[:-1]] == [r["id"] for r in raws[: len(rows) - 1]]
    assert all(r["error"] is None for r in rows[:-1])
    assert rows[-1]["error"].startswith("cannot read")
    assert count(str(path)) is None


def test_what_is_no_gzip_is_one_document_with_an_error(tmp_path: Path) -> None:
    (row,) = read(lines(tmp_path, own(), name="in.jsonl.gz"))
    assert row["error"].startswith("cannot read")


def test_gzipped_lines_are_read_and_counted(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "in.json.gz", "wt") as file:
        file.write(json.dumps(own()) + "\n\n" + json.dumps(own()))
    assert len(read(tmp_path / "in.json.gz")) == 2 == count(str(tmp_path / "in.json.gz"))


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_a_file_that_is_gone_is_one_document_with_an_error(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path / name)
    assert row["document_id"] == name
    assert row["error"].startswith("cannot read")


def test_each_unreadable_file_says_its_own(tmp_path: Path) -> None:
    """Truncated, foreign, not gzip, gone: four reasons, four messages."""
    whole = parquet(tmp_path, [own()]).read_bytes()
    makers: dict[str, Callable[[Path], object]] = {
        "a.parquet": lambda p: p.write_bytes(whole[:-9]),
        "b.parquet": lambda p: p.write_bytes(b"short"),
        "c.jsonl.gz": lambda p: p.write_bytes(b"no gzip"),
        "d.jsonl": lambda p: None,
    }
    messages = set()
    for name, make in makers.items():
        make(tmp_path / name)
        (row,) = read(tmp_path / name)
        messages.add(row["error"].partition(": ")[2].replace(str(tmp_path / name), ""))
    assert len(messages) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_batches_have_at_most_their_size(tmp_path: Path, size: int) -> None:
    path = lines(tmp_path, *(own(id=str(i)) for i in range(5)), "broken")
    assert [r["document_id"] for r in read(path, batch=size)] == ["0", "1", "2", "3", "4", "in.jsonl:6"]


# files() and count()


def test_files_of_a_folder_are_all_that_can_be_read(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.json", "sub/c.jsonl.gz", "sub/deep/d.parquet", "e.pq", "f.json.gz"]
    for name in [*names, "g.jpg", "README.md", "h.xlsx"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert files([str(tmp_path)]) == sorted(f"{tmp_path}/{name}" for name in names)


def test_files_are_in_the_order_they_were_given(tmp_path: Path) -> None:
    paths = [str(lines(tmp_path, name=name)) for name in ("z.jsonl", "a.jsonl")]
    assert files(paths) == paths


@pytest.mark.parametrize("name", ["[1].jsonl", "what?.jsonl", "a b.jsonl", "100%.jsonl", "ä.jsonl"])
def test_a_file_of_any_name_is_itself(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path, own(), name=name)
    assert files([str(path)]) == [str(path)]
    assert len(read(path)) == 1 == count(str(path))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere\.jsonl"):
        files([str(tmp_path / "nowhere.jsonl")])


def test_a_folder_of_nothing_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no file that ends in \.json"):
        files([str(tmp_path)])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, name="a.xlsx")
    with pytest.raises(ValueError, match=r"a\.xlsx: a document file ends in \.json"):
        files([str(path)])


@pytest.mark.parametrize("pattern", ["*.jsonl", "nothing*.jsonl"])
def test_a_pattern_is_expanded_or_refused_in_words(tmp_path: Path, pattern: str) -> None:
    """Quoted patterns and those of object stores reach us as they are."""
    paths = [str(lines(tmp_path, own(), name=name)) for name in ("a.jsonl", "b.jsonl")]
    try:
        assert files([str(tmp_path / pattern)]) == paths
    except ValueError as reason:
        assert pattern in str(reason)


@pytest.fixture
def memory() -> Iterator[str]:
    """An address that is no local path, as of an object store."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/bucket/in.jsonl", json.dumps(own(image="a.jpg")).encode())
    filesystem.pipe("/bucket/sub/more.jsonl", b"\n".join([json.dumps(own()).encode()] * 2))
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def test_files_of_other_filesystems_are_found_and_read(memory: str) -> None:
    found = files([memory])
    assert len(found) == 2
    assert [count(address) for address in found] == [None, None]  # not read through for that
    (row,) = read(found[0])
    assert row["document_id"] == "d"
    assert row["image_address"].startswith("memory://")
    assert row["image_address"].endswith("bucket/a.jpg")
    assert files([f"{memory}/in.jsonl"]) == [f"{memory}/in.jsonl"]


def test_documents_are_counted_and_a_file_that_cannot_be_read_has_no_count(tmp_path: Path) -> None:
    assert count(str(lines(tmp_path, own(), "", "broken", "  ", own()))) == 3
    assert count(str(parquet(tmp_path, [own()] * 7))) == 7
    assert count(str(tmp_path / "nowhere.jsonl")) is None
    (tmp_path / "no.parquet").write_bytes(b"no")
    assert count(str(tmp_path / "no.parquet")) is None
