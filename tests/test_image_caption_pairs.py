"""Image-caption pairs as they come: tar shards, what img2dataset writes, released captions."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.readers import count, documents, files, opening
from gemel_ray.readers.shards import tar_rows
from gemel_ray.records import DOCUMENT

Row = dict[str, Any]


def read(address: Path | str) -> list[Row]:
    rows: list[Row] = []
    for table in documents(str(address)):
        assert table.schema == DOCUMENT
        table.validate(full=True)
        rows += table.to_pylist()
    return rows


def shard(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str, /, caption: str = "A caption.", **fields: Any) -> list[tuple[str, bytes]]:
    more = [(f"{key}.json", json.dumps(fields).encode())] if fields else []
    return [(f"{key}.jpg", b"picture of " + key.encode()), (f"{key}.txt", caption.encode()), *more]


def test_every_pair_of_a_shard_is_a_document(tmp_path: Path) -> None:
    path = shard(tmp_path / "00000.tar", *pair("a/000", "Straße in München"), *pair("a/001"), *pair("b/001"))
    rows = read(path)
    assert [r["document_id"] for r in rows] == [f"00000.tar:{key}" for key in ("a/000", "a/001", "b/001")]
    assert [r["source"] for r in rows] == [f"{path}:{i}" for i in (1, 2, 3)]
    assert rows[0]["text"] == "Straße in München"
    assert rows[0]["image"] == b"picture of a/000"
    assert rows[0]["given"] is None
    assert not any(r["error"] for r in rows)


def test_a_shard_may_be_compressed(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar.gz", *pair("a"), mode="w:gz")
    assert [r["document_id"] for r in read(path)] == ["x.tar.gz:a"]
    plain = shard(tmp_path / "x.tar", *pair("a"), *pair("b")).read_bytes()
    whole = pa.compress(plain, "zstd", asbytes=True)
    (tmp_path / "x.tar.zst").write_bytes(whole)
    assert [r["document_id"] for r in read(tmp_path / "x.tar.zst")] == ["x.tar.zst:a", "x.tar.zst:b"]
    (tmp_path / "x.tar.zst").write_bytes(whole[:-30])
    assert "cannot read" in str(read(tmp_path / "x.tar.zst")[-1]["error"])


def test_the_fields_of_a_pair_s_json_are_read(tmp_path: Path) -> None:
    given = pair("a", "Adobe here", id="own-id", mentions=[{"start": 0, "end": 5}], url="https://x.org/a.jpg")
    (row,) = read(shard(tmp_path / "s.tar", *given))
    assert row["document_id"] == "own-id"
    assert [m["mention"] for m in row["given"]] == ["Adobe"]
    assert (row["image"], row["image_address"]) == (b"picture of a", None)


def test_a_picture_alone_is_an_error_and_a_caption_alone_a_document(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "s.tar", ("a.jpg", b"x"), ("b.txt", b"Only words."), ("c.json", b'{"caption": "C"}')
    )
    lonely, words, described = read(path)
    assert lonely["error"].startswith("the text is empty")
    assert (words["text"], words["image"], words["error"]) == ("Only words.", None, None)
    assert described["text"] == "C"


def test_a_shard_that_ends_too_soon_keeps_what_was_before(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", *(m for i in range(50) for m in pair(f"{i:03}")))
    path.write_bytes(path.read_bytes()[: 60 * 1024 + 100])
    rows = read(path)
    assert 10 < len(rows) < 50
    assert all(r["error"] is None for r in rows[:-1])
    assert f"cannot read {path}" in rows[-1]["error"]


@pytest.mark.parametrize("blocks", range(2, 42, 2))
def test_a_whole_shard_ends_well_wherever_its_last_block_falls(tmp_path: Path, blocks: int) -> None:
    path = shard(tmp_path / "s.tar", *((f"{i:03}.txt", b"A caption.") for i in range(blocks // 2)))
    assert [r["error"] for r in read(path)] == [None] * (blocks // 2)


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_no_pair_is_lost_without_a_word(tmp_path: Path, name: str) -> None:
    members = [m for i in range(30) for m in pair(f"{i:03}")]
    path = shard(tmp_path / name, *members, mode="w:gz" if name.endswith("gz") else "w")
    whole = path.read_bytes()
    for end in range(200, len(whole), len(whole) // 60):
        path.write_bytes(whole[:end])
        rows = read(path)
        assert rows[-1]["error"] or len(rows) == 30, end


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_a_damaged_member_is_reported(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "whole.tar", *(m for i in range(30) for m in pair(f"{i:03}")))
    data = bytearray(path.read_bytes())
    at = data.find(b"010.jpg")
    data[at : at + 512] = b"\xff" * 512
    damaged = tmp_path / name
    damaged.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows = read(damaged)
    assert [r["error"] for r in rows[:-1]] == [None] * 9  # of 009 it is not known that it was whole
    assert "it is damaged" in rows[-1]["error"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"S"])
def test_a_header_is_not_believed_to_be_endless(tmp_path: Path, kind: bytes) -> None:
    """It takes next to nothing compressed."""
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 2**30
    path = shard(tmp_path / "whole.tar", *pair("a"), *pair("b"))
    whole = path.read_bytes()
    at = whole.index(b"b.txt")
    long = tmp_path / "long.tar.gz"
    with gzip.open(long, "wb", 1) as file:
        file.write(whole[:at] + header.tobuf())
        for _ in range(200):
            file.write(b"\1" * 2**20)
    tracemalloc.start()
    first, last = read(long)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert first["text"] == "A caption."
    assert "sparse" in last["error"] if kind == b"S" else "a name of 1,073,741,824 bytes" in last["error"]


def test_a_hostile_shard_reads_no_other_file_and_costs_only_its_rows(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for kind, name in (
            (tarfile.SYMTYPE, "a.txt"),
            (tarfile.LNKTYPE, "b.txt"),
            (tarfile.FIFOTYPE, "c.txt"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        for name, data in (
            ("../../d.txt", b"Up."),
            ("/e.txt", b"Root."),
            ("f.txt", b"\xff\xfe"),
            ("g.json", b"{"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        large = tarfile.TarInfo("h.jpg")
        large.size = 80 * 2**20
        tar.addfile(large, io.BytesIO(bytes(large.size)))
        tar.addfile(tarfile.TarInfo("i.txt"), io.BytesIO())
    rows = {r["document_id"]: r for r in read(path)}
    assert "secret" not in {r["text"] for r in rows.values()}
    assert rows["s.tar:../../d"]["text"] == "Up."
    wrong = {name: r["error"] for name, r in rows.items() if r["error"]}
    assert rows["s.tar:e"]["text"] == "Root."
    for said in ("f.txt cannot be read", "g.json cannot be read", "h.jpg declares 83,886,080 bytes"):
        assert any(said in error for error in wrong.values())
    assert "a.txt is a link to " in wrong["s.tar:1"]
    assert wrong["s.tar:i"].startswith("the text is empty")
    assert not list(tmp_path.parent.glob("d.txt"))


def told(path: Path) -> list[tuple[str | None, bytes | None, str | None]]:
    return [(r["text"], r["image"], r["error"]) for r in read(path)]


@pytest.mark.parametrize(
    "keys",
    [("photo.2021", "photo.2022"), ("St. Mary", "St. Paul"), ("d/22.05", "d/22.06"), ("v1.2.a", "v1.3.a")],
)
def test_names_with_dots_are_pairs(tmp_path: Path, keys: tuple[str, str]) -> None:
    first, second = keys
    rows = read(
        shard(tmp_path / "s.tar", *pair(first, "One."), *pair(second, "Two."), *pair("plain", "Three."))
    )
    assert [r["text"] for r in rows] == ["One.", "Two.", "Three."]
    assert [r["image"] for r in rows] == [b"picture of " + key.encode() for key in (*keys, "plain")]
    assert [r["document_id"] for r in rows] == [f"s.tar:{key}" for key in (*keys, "plain")]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_further_members_of_a_pair_are_not_read_but_said(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Also one that stands in front of the others, as tar --sort=name has a.depth.png."""
    members = [("a.depth.png", b"depth"), ("a.jpg", b"picture"), ("a.txt", b"One.")]
    (row,) = read(shard(tmp_path / "s.tar", *(members[i] for i in order)))
    assert (row["text"], row["image"], row["error"]) == ("One.", b"picture", None)
    assert row["unread"] in (".depth.png", ".png")


def test_a_key_that_comes_again_is_an_error_that_names_it(tmp_path: Path) -> None:
    rows = told(
        shard(tmp_path / "s.tar", *pair("0001", "One."), *pair("0001", "Two."), *pair("0002", "Three."))
    )
    assert [r[0] for r in rows] == ["One.", None, "Three."]
    assert rows[1][2] == "0001.jpg: the pair 0001 has such a member already; names in a shard must differ"


def test_two_pictures_of_a_pair_are_an_error_that_names_both(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ("a.jpg", b"1"), ("a.png", b"2"), ("a.txt", b"One."), *pair("b", "Two."))
    rows = told(path)
    assert [r[2] for r in rows] == ["a.png: the pair a has a.jpg already", None]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("keys", [("a", "b", "c"), ("x/2.1", "x/2.2", "y/2.1")])
def test_members_out_of_order_are_put_together(
    tmp_path: Path, keys: tuple[str, ...], order: tuple[int, ...]
) -> None:
    members = [pair(key, f"Of {key}.", mentions=[{"start": 0, "end": 2}]) for key in keys]
    rows = read(shard(tmp_path / "s.tar", *(m[i] for i in order for m in members)))
    assert [(r["document_id"], r["text"], r["image"], r["error"]) for r in rows] == [
        (f"s.tar:{key}", f"Of {key}.", b"picture of " + key.encode(), None) for key in keys
    ]
    found = [r["given"] for r in rows]
    assert [m and m[0]["mention"] for m in found] == ["Of"] * 3


def test_captions_in_json_are_found_where_members_are_out_of_order(tmp_path: Path) -> None:
    described = [(f"{key}.json", json.dumps({"caption": f"Of {key}."}).encode()) for key in "ab"]
    rows = told(shard(tmp_path / "s.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), *described))
    assert rows == [("Of a.", b"1", None), ("Of b.", b"2", None)]


def test_a_second_picture_of_a_pair_out_of_order_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("a.png", b"3"), ("a.txt", b"One."))
    assert [r[2] for r in told(path)] == [
        "a.png: the pair a has a.jpg already", "the text is empty: b.jpg has no b.txt after it",
    ]  # fmt: skip
    path = shard(tmp_path / "t.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.txt", b"One."))
    assert "a.jpg: the pair a has such a member already; names in a shard must differ" in [
        r[2] for r in told(path)
    ]


@pytest.mark.parametrize(("room", "most"), [("WAITING_BYTES", 3000), ("WAITING_PAIRS", 3)])
def test_members_further_apart_than_there_is_room_for_are_errors_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, most: int
) -> None:
    monkeypatch.setattr(opening, room, most)
    pictures = [(f"{i}.jpg", bytes(1000)) for i in range(5)]
    rows = told(shard(tmp_path / "s.tar", *pictures, *((f"{i}.txt", b"A caption.") for i in range(5))))
    assert [r[2] for r in rows[4:]] == [None] * 3  # of the last three both were there
    for i in range(2):
        early, late = rows[i][2], rows[2 + i][2]
        assert f"the text is empty: {i}.jpg has no {i}.txt after it within the " in str(early)
        assert f"{i}.txt is apart from the members of {i} before, and too far from them" in str(late)
        assert all("tar --sort=name" in str(error) for error in (early, late))


def test_pairs_that_wait_cost_no_more_than_the_room_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "WAITING_BYTES", 2**20)
    path = shard(tmp_path / "s.tar", *((f"{i}.jpg", bytes(2**16)) for i in range(500)))
    tracemalloc.start()
    rows = sum(1 for _ in tar_rows(str(path)))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert rows == 500


def test_a_shard_out_of_order_that_breaks_off_is_read_again_without_a_row_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [pair(f"{i:02}", f"Of {i}.") for i in range(40)]
    path = shard(tmp_path / "s.tar", *(m[0] for m in members), *pair("x"), *(m[1] for m in members))
    whole, fails = told(path), [True]

    class Breaks(io.FileIO):
        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            if fails and self.tell() > 50_000:
                fails.clear()
                raise ConnectionResetError("gone")
            return bytes(super().read(size))

    monkeypatch.setattr("gemel_ray.readers.shards.fsspec.open", lambda address, _: Breaks(address))
    monkeypatch.setattr("gemel_ray.readers.reading._PAUSES", (0.0,))
    assert told(path) == whole
    assert not fails


def test_a_shard_out_of_order_that_ends_too_soon_gives_what_was_before(tmp_path: Path) -> None:
    members = [pair(f"{i:02}", f"Of {i}.") for i in range(40)]
    path = shard(tmp_path / "s.tar", *(m[0] for m in members), *(m[1] for m in members))
    path.write_bytes(path.read_bytes()[: 60 * 1024 + 100])
    *rows, last = told(path)
    assert "it ends too soon" in str(last[2])
    assert sum(r[2] is None and r[1] is not None for r in rows) == 19
    assert all("has no" in str(r[2]) for r in rows if r[2])


@pytest.mark.parametrize("name", ["a.caption.txt", "a.0.txt"])
def test_a_caption_of_another_name_is_named(tmp_path: Path, name: str) -> None:
    (row,) = told(shard(tmp_path / "s.tar", ("a.jpg", b"1"), (name, b"One.")))
    assert f"{name} belongs to no pair: members are paired by the name up to its first dot, a" in str(row[2])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_its_pair_s_error(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("a.jpg", b"1"), ("a.txt", b"One."), ("b.jpg", None), ("b.txt", b"Two.")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = (
                (kind, "a.jpg", 0) if data is None else (tarfile.REGTYPE, "", len(data))
            )
            tar.addfile(info, io.BytesIO(data or b""))
    first, second = told(tmp_path / "s.tar")
    assert first == ("One.", b"1", None)
    assert second[2].startswith("b.jpg is a link to a.jpg: links in a shard are not followed")


@pytest.mark.parametrize("kind", ["jfif", "JPG", "heic", "avif", "svg", "img", "jp2"])
def test_a_member_of_any_kind_of_picture_is_one(tmp_path: Path, kind: str) -> None:
    """Whether it can be decoded is told by the one who decodes it."""
    assert told(shard(tmp_path / "s.TAR", (f"a.{kind}", b"1"), ("a.txt", b"One."))) == [("One.", b"1", None)]


def test_shards_of_img2dataset_are_read_without_their_parquet(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", *pair("000000000", key="000000000", status="success"))
    shard(tmp_path / "00001.tar", *pair("000010000"), *pair("000010001"))
    for name in ("00000", "00001"):
        pq.write_table(pa.table({"caption": ["A", "B", "C"], "status": ["success", "success", "failed"]}),
                       tmp_path / f"{name}.parquet")  # fmt: skip
    (tmp_path / "00000_stats.json").write_text('{"count": 3, "successes": 1}')
    found = files([str(tmp_path)])
    assert [Path(f).name for f in found] == ["00000.tar", "00001.tar"]
    assert [count(f) for f in found] == [1, 2]
    assert [r["document_id"] for f in found for r in read(f)] == [
        "00000.tar:000000000", "00001.tar:000010000", "00001.tar:000010001",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["*", "0000*"])
def test_a_pattern_passes_over_what_stands_beside_a_shard(tmp_path: Path, pattern: str) -> None:
    shard(tmp_path / "00000.tar", *pair("000000000"))
    pq.write_table(pa.table({"key": ["000000000"], "status": ["success"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text(json.dumps({"successes": 1}))
    assert files([str(tmp_path / pattern)]) == [str(tmp_path / "00000.tar")]
    assert files([str(tmp_path / "*.parquet")]) == [str(tmp_path / "00000.parquet")]


def test_parquet_of_img2dataset_is_read_and_failed_downloads_are_errors(tmp_path: Path) -> None:
    rows = [
        {"jpg": b"bytes", "caption": "A", "key": "0", "status": "success", "error_message": None},
        {"jpg": None, "caption": "B", "key": "1", "status": "failed_to_download",
         "error_message": "HTTP Error 404: Not Found"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    first, second = read(files([str(tmp_path)])[0])
    assert (first["document_id"], first["text"], first["image"]) == ("00000.parquet:0", "A", b"bytes")
    assert second["error"] == (
        "img2dataset could not get its picture: HTTP Error 404: Not Found (00000.parquet:2)"
    )


def test_files_of_img2dataset_are_found_from_their_parquet(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    for name, data in (("000.jpg", b"picture"), ("000.txt", b"A"), ("000.json", b'{"caption": "A"}')):
        (tmp_path / "00000" / name).write_bytes(data)
    rows = [{"caption": "A", "url": "https://x.org/a.jpg", "key": "000", "status": "success"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    (address,) = files([str(tmp_path)])
    (row,) = read(address)
    assert Path(row["image_address"]) == tmp_path / "00000" / "000.jpg"


@pytest.mark.parametrize(
    ("raw", "text", "address"),
    [
        ({"TEXT": "A cat.", "URL": "https://x.org/a.jpg"}, "A cat.", "https://x.org/a.jpg"),
        ({"caption": "A cat.", "url": "https://x.org/a.jpg"}, "A cat.", "https://x.org/a.jpg"),
        ({"text": "A cat.", "image_url": "https://x.org/a.jpg"}, "A cat.", "https://x.org/a.jpg"),
        ({"alt_text": "A cat.", "image": "a.jpg"}, "A cat.", "FOLDER/a.jpg"),
        ({"text": "A cat.", "url": "https://x.org/the-page"}, "A cat.", None),
        ({"text": "A cat.", "caption": "other"}, "A cat.", None),
    ],
)
def test_captions_are_read_in_the_forms_in_which_they_are_released(
    tmp_path: Path, raw: Row, text: str, address: str | None
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(raw))
    (row,) = read(file)
    assert (row["text"], row["error"], row["given"]) == (text, None, None)
    assert row["image_address"] == (address and address.replace("FOLDER", str(tmp_path)))


def test_a_picture_s_address_must_be_words(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"caption": "A", "url": 5}')
    (row,) = read(tmp_path / "in.jsonl")
    assert row["error"].startswith("url cannot be 5")


def test_braces_stand_for_files(tmp_path: Path) -> None:
    for number in range(8, 12):
        shard(tmp_path / f"part-{number:04}.tar", *pair("a"))
    asked = f"{tmp_path}/part-{{0008..0010}}.tar"
    assert [Path(f).name for f in files([asked])] == [f"part-{n:04}.tar" for n in (8, 9, 10)]
    assert len(files([f"{tmp_path}/part-{{0008,0011}}.tar"])) == 2
    with pytest.raises(ValueError, match=r"there is no .*part-0012\.tar"):
        files([f"{tmp_path}/part-{{0010..0012}}.tar"])
    with pytest.raises(ValueError, match="stands for no files"):
        files([f"{tmp_path}/part-{{0012..0010}}.tar"])


def test_a_shard_is_read_from_object_storage(tmp_path: Path) -> None:
    data = shard(tmp_path / "s.tar", *pair("a"), *pair("b")).read_bytes()
    with fsspec.open("memory://shards/s.tar", "wb") as file:
        file.write(data)
    assert files(["memory://shards/*.tar"]) == ["memory:///shards/s.tar"]
    assert [r["document_id"] for r in read("memory://shards/s.tar")] == ["s.tar:a", "s.tar:b"]
