"""The data-set checker: each fault is found, under its own kind and place; what is sound is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gemel_ray.checking import Findings, Scope, check
from gemel_ray.cli import main
from gemel_ray.readers import files

Row = dict[str, Any]
TEXT = "Adobe and Google met in Paris."


def row(name: str, **fields: Any) -> Row:
    mention = {"start": 0, "end": 5, "target": "Adobe Inc."}
    return {"id": name, "text": f"{TEXT} {name}", "mentions": [mention]} | fields


def official(name: str, **fields: Any) -> Row:
    return {"id": name, "text": f"{TEXT} {name}", "mention": "Google", "target": "Google"} | fields


def written(folder: Path, *rows: Row, name: str = "in.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder / name)


def picture(folder: Path, name: str, colour: str = "red") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(folder / name)


def looked(*inputs: str, **scope: Any) -> Findings:
    return check(files(inputs), Scope(**scope), lambda line: None)


def test_what_is_sound_is_clean(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    kb = written(
        tmp_path, {"id": "Q1", "name": "Adobe Inc."}, {"id": "Q2", "name": "Google"}, name="kb.jsonl"
    )
    path = written(tmp_path, row("a", image="a.png"), official("b", golden="NIL", target="nobody"))
    found = looked(path, entities=kb, train=[written(tmp_path, row("c"), name="train.jsonl")])
    assert found.clean
    assert (found.documents, found.mentions, found.pictures) == (2, 2, 1)
    assert found.table().endswith("nothing found")


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_a_file_without_a_document_is_not_sound(tmp_path: Path, name: str, capsys: Any) -> None:
    assert main(["check", written(tmp_path, name=name)]) == 1
    assert "there is no document in it" in capsys.readouterr().out


FAULTS: dict[str, tuple[str, list[Row], str]] = {
    "empty text": ("row", [row("a", text="")], "the text is empty"),
    "same id": ("id", [row("a"), row("a", text="Adobe again")], "the id is also that of"),
    "outside": ("mention", [row("a", mentions=[{"start": 90, "end": 99}])], "outside its text"),
    "another place": ("mention", [official("a", start=0, end=5)], "'Google' is 'Adobe' in the text"),
    "twice": ("duplicate", [row("a", text=TEXT), row("b", text=TEXT)], "'Adobe' is also in"),
    "no such picture": ("missing", [row("a", image="none.png")], "there is no"),
    "no such key": ("missing", [official("a", img_name="none.png")], "there is no none.png"),
    "broken picture": ("corrupt", [row("a", image="broken.png")], "not a complete picture"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_and_nothing_else(tmp_path: Path, what: str) -> None:
    kind, rows, reason = FAULTS[what]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    path = written(tmp_path, row("before"), *rows)
    found = looked(path)
    assert dict(found.counts) == {kind: 1}
    assert found.first[kind][0].startswith(f"{path}: {rows[-1]['id']}: ")
    assert reason in found.first[kind][0]


@pytest.mark.parametrize("image", ["x" * 30_000, "a\0b.png", "data:image/png;base64," + "A" * 30_000])
def test_no_row_ends_the_check_and_no_message_is_long(tmp_path: Path, image: str) -> None:
    found = looked(written(tmp_path, row("a", image=image), row("b", text="")), images=tmp_path)
    assert sum(found.counts[kind] for kind in ("row", "corrupt", "missing")) == 2
    assert len(found.table()) < 2000


def test_what_a_build_would_leave_out_or_cut_is_told(tmp_path: Path) -> None:
    entities = [{"id": 1, "name": "Adobe Inc."}, {"id": "1", "name": "Google"}, {"id": 2, "name": "a " * 900}]
    kb = written(tmp_path, *entities, name="kb.jsonl")
    long = {"id": "b", "text": f"Adobe {'word ' * 3000}", "mentions": [{"start": 0, "end": 5}]}
    found = looked(written(tmp_path, row("a"), long), entities=kb)
    assert dict(found.counts) == {"same_entity": 1, "long_name": 1, "long_text": 1}
    assert found.first["same_entity"] == [f"{kb}:2: the id '1' of 'Google' is that of 'Adobe Inc.'"]
    assert found.first["long_name"][0].endswith("has 1,799 characters")
    assert found.first["long_text"][0].endswith("b: the text has 15,006 characters")


def test_a_target_that_is_an_id_is_that_entity(tmp_path: Path) -> None:
    entities = [
        {"id": "Q1", "name": "Adobe Inc."},
        {"id": "Q2", "name": "Q3"},
        {"id": "Q3", "name": "Google"},
    ]
    kb = written(tmp_path, *entities, name="kb.jsonl")
    rows = [
        row(t, mentions=[{"start": 0, "end": 5, "target": t}]) for t in ("Q1", "Q3", "Q4", "Google\u00a0")
    ]
    found = looked(written(tmp_path, *rows), entities=kb)
    assert dict(found.counts) == {"taken": 1, "doubt": 1, "target": 1}
    assert "'Q1' is 'Adobe Inc.'" in found.first["taken"][0]
    assert "there is no entity 'Q4'" in found.first["target"][0]


def test_rows_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, row("a"), {"text": ""})
    assert looked(path).first["row"] == [f"{path}:2: the text is empty"]


def test_targets_are_held_against_the_knowledge_base(tmp_path: Path) -> None:
    entities = [{"id": "Q1", "name": "Adobe Inc."}, {"id": "Q2", "name": "Google LLC"}, {"id": "Q3"}]
    kb = written(tmp_path, *entities, name="kb.jsonl")
    by_id = {"start": 0, "end": 5, "target_id": "Q1"}
    rows = [official("a", golden="Q2"), official("b", golden="Q9"), row("c", mentions=[by_id])]
    found = looked(written(tmp_path, *rows), entities=kb)
    assert dict(found.counts) == {"entity": 1, "renamed": 1, "target": 1}
    assert "'Google' is 'Google LLC' (Q2)" in found.first["renamed"][0]
    assert "no entity 'Google' (Q9)" in found.first["target"][0]
    assert found.first["entity"] == [f"{kb}:3: an entity needs a name: it has none (its fields are id)"]


def test_what_training_data_has_too_is_counted_by_mention_text_and_picture(tmp_path: Path) -> None:
    """By text and mention, by text alone, by the picture's key and by its content under another name."""
    for name, colour in {"a.png": "red", "copy.png": "red", "b.png": "blue"}.items():
        picture(tmp_path, name, colour)
    url = "https://e.org/a.png"
    train = [row("t", text=TEXT, image="a.png"), official("u", img_url=url)]
    google = [{"start": 10, "end": 16}]
    test = [row("x", text=TEXT), row("y", text=TEXT, mentions=google), official("z", img_url=url)]
    test += [row("v", image="copy.png"), row("w", image="b.png")]
    found = looked(written(tmp_path, *test), train=[written(tmp_path, *train, name="train.jsonl")])
    assert dict(found.counts) == {"train_mention": 1, "train_text": 2, "train_image": 2}
    assert ["z" in found.first["train_image"][0], "v: " in found.first["train_image"][1]] == [True, True]


def test_pictures_that_are_missing_and_those_that_nobody_uses_are_found(tmp_path: Path) -> None:
    """Found by key, by a URL's last part and as MIMIC's JPEG; one is missing, one is nobody's."""
    folder = tmp_path / "pictures"
    for name in ("a.png", "b c.png", "d.jpg", "nobody.png"):
        picture(folder, name)
    rows = [official("1", img_name="a.png"), official("2", img_url="https://e.org/x/b%20c.png")]
    rows += [{"id": "3", "sentence": "Adobe 3", "mentions": "Adobe", "imgPath": "old/d.tif"}]
    rows += [official("4", img_url="https://e.org/none.png")]
    found = looked(written(tmp_path, *rows), images=folder)
    assert dict(found.counts) == {"missing": 1, "unused": 1}
    assert "4: there is no https://e.org/none.png" in found.first["missing"][0]
    assert found.first["unused"] == [f"{folder}/nobody.png: no document uses it"]


def test_the_first_ten_are_told_and_all_are_counted(tmp_path: Path) -> None:
    found = looked(written(tmp_path, *(row(f"{i}", text="") for i in range(13))))
    assert found.figures()["found"]["row"]["count"] == 13
    assert len(found.figures()["found"]["row"]["first"]) == 10
    assert "13 rows that cannot be read" in found.table()
    assert "... and 3 more" in found.table()


def test_the_exit_status_says_whether_something_was_found_and_json_has_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", written(tmp_path, row("a"))]) == 0
    assert main(["check", written(tmp_path, row("a", text=""), name="bad.jsonl"), "--json"]) == 1
    told = capsys.readouterr().out.partition("nothing found")[2]
    assert json.loads(told)["found"]["row"]["count"] == 1
    assert main(["check", str(tmp_path / "nowhere.jsonl")]) == 2
    assert main(["check", str(tmp_path / "in.jsonl"), "--images", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder of pictures" in capsys.readouterr().err
