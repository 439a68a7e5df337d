"""Equal pictures and mentions are encoded once: in memory, in the workspace's file, in the stage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import DATA

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.records import MENTION
from gemel_ray.stages.encode import Encode
from gemel_ray.stages.encoding import CachedEncoder, PictureCache


def vector(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def test_a_string_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> Any:
        asked.extend(texts)
        return np.array([[len(t)] for t in texts], np.float32)

    remembered = CachedEncoder(encode)
    assert [v.tolist() for v in remembered(["a", "bb", "a"])] == [[1], [2], [1]]
    assert [v.tolist() for v in remembered(["ccc", "bb"])] == [[3], [2]]
    assert asked == ["a", "bb", "ccc"]
    assert remembered([]) == []


def test_what_was_put_is_there_for_others_too(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "cache.sqlite"
    one, other = PictureCache(file, 10), PictureCache(file, 10)
    one.put({b"x": vector(1, 2), b"y": vector(3, 4)})
    one.put({b"x": vector(9, 9)})  # the first answer stays
    found = other.get([b"x", b"y", b"z"])
    assert {k: v.tolist() for k, v in found.items()} == {b"x": [1, 2], b"y": [3, 4]}
    assert len(other.get(bytes([i, j]) for i in range(256) for j in range(9))) == 0


def test_the_oldest_are_given_up(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache.sqlite", 3)
    for i in range(6):
        cache.put({bytes([i]): vector(i)})
    assert sorted(cache.get([bytes([i]) for i in range(6)])) == [bytes([i]) for i in (3, 4, 5)]


def test_a_file_that_cannot_be_used_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"this is no data base" * 100)
    for path in (tmp_path / "file" / "cache.sqlite", broken):
        cache = PictureCache(path, 3)
        cache.put({b"x": vector(1)})
        assert cache.get([b"x"]) == {}
        cache.close()
    held = PictureCache(tmp_path / "cache.sqlite", 3)
    with sqlite3.connect(tmp_path / "cache.sqlite") as base:
        base.execute("DROP TABLE picture")
    held.put({b"x": vector(1)})
    assert held.get([b"x"]) == {}


@pytest.fixture
def batch(tmp_path: Path) -> pa.Table:
    """Two pictures, each once as bytes and once as a file, one that is broken, and none."""
    images = pq.read_table(DATA / "test.parquet").slice(0, 2)["image"].to_pylist()
    for name, data in (("a.jpg", images[0]), ("broken.jpg", images[0][:100])):
        (tmp_path / name).write_bytes(data)
    here = [str(tmp_path / "a.jpg"), str(tmp_path / "broken.jpg")]
    columns = {
        "text": ["Adobe."] * 6,
        "image": [images[0], images[1], None, None, images[1], None],
        "image_address": [None, None, *here, "elsewhere.jpg", None],
        "image_key": [None] * 6,
        "mentions": [[{"mention": "Adobe"}]] * 6,
        "unread": [None, None, None, None, None, "size\nthumb"],
        "unread_picture": [None, None, None, None, None, "thumb"],
    }
    types = [
        pa.string(),
        pa.large_binary(),
        pa.string(),
        pa.string(),
        pa.list_(MENTION),
        pa.string(),
        pa.string(),
    ]
    return pa.table({n: pa.array(v, t) for (n, v), t in zip(columns.items(), types, strict=True)})


@pytest.fixture
def stage(config: Config, workspace: Workspace) -> Iterator[Encode]:
    """On a cache that no other test has filled, and that none finds filled."""

    def emptied() -> None:
        for file in (workspace.folder / "cache").glob("pictures-*"):
            file.unlink()

    emptied()
    yield config.encode
    emptied()


def test_equal_pictures_are_encoded_once_within_a_job_and_across_jobs(
    stage: Encode, workspace: Workspace, batch: pa.Table
) -> None:
    first = stage.start(workspace)
    answer: Any = first(batch)
    vectors, errors = answer["image_vector"].to_pylist(), answer["error"].to_pylist()
    assert first.measures()["images_encoded"] == 2
    assert vectors[0] == vectors[2] != vectors[1] == vectors[4]
    assert vectors[3] is None and vectors[5] is None
    assert [bool(e) for e in errors] == [False, False, False, True, False, False]
    assert "broken.jpg" in errors[3]
    assert first.measures()["unread"] == {"size": 1, "thumb": 1}
    assert first.measures()["unread_pictures"] == {"thumb": 1}
    first(batch)
    assert first.measures()["images_encoded"] == 2
    first.close()
    later = stage.start(workspace)
    again: Any = later(batch)
    assert later.measures()["images_encoded"] == 0
    assert again["image_vector"].equals(answer["image_vector"])
    later.close()
    without = replace(stage, cache=0).start(workspace)
    without(batch)
    assert without.measures()["images_encoded"] == 2
    without.close()
