"""A bank: solved examples first, then the knowledge base's own names, where it is small enough."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemel_ray.cli import main
from gemel_ray.config import load
from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge import writing
from gemel_ray.knowledge.build import build, first_targets
from gemel_ray.knowledge.entities import Targets
from gemel_ray.knowledge.thumbnails import Collected
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.knowledge.writing import forms, name_examples
from gemel_ray.linking import linking_graph
from gemel_ray.pictures.limits import ImageLimits
from gemel_ray.readers import documents
from gemel_ray.stages.retrieve import TEMPERATURE

ENTITIES = [
    {"id": "Q1", "name": "Georgios Theotokis", "description": "Greek politician"},
    {"id": "Q2", "name": "New York City", "aliases": ["NYC", "Big Apple"]},
    {"id": "Q3", "name": "Paris"},
]
EXAMPLES = [{"id": "e1", "text": "Paris", "mention": "Paris", "target": "Paris", "golden": "Q3"}]


def made(folder: Path, *settings: str) -> Workspace:
    """A workspace of these, opened as it was built."""
    for name, lines in (("kb.jsonl", ENTITIES), ("train.json", EXAMPLES)):
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    output = folder / "workspace"
    build(load(None, {}, settings), str(folder / "kb.jsonl"), [str(folder / "train.json")], output, print)
    return Workspace.open(output, load(None, read_facts(output)["settings"], settings))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: Any) -> Workspace:
    return made(tmp_path_factory.mktemp("bank"))


def test_the_starter_s_workspace_has_the_starter_s_mapper(workspace: Workspace) -> None:
    assert workspace.prefix


def test_a_mapper_that_would_change_nothing_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """The mapper is the workspace's. What it was built with may be said again."""
    without = made(tmp_path, "models.mapper=none")
    assert without.prefix == 0
    for folder, mapper, its in (
        (
            workspace.folder,
            "none",
            "has another feature mapper, and models.mapper = none",
        ),
        (without.folder, "other.safetensors", "has no feature mapper, and models.mapper = other.safetensors"),
    ):
        config = load(None, read_facts(folder)["settings"], [f"models.mapper={mapper}"])
        with pytest.raises(WorkspaceError, match=its):
            Workspace.open(folder, config)


def test_names_and_aliases_stand_behind_the_solved_examples(workspace: Workspace) -> None:
    table = workspace.bank.table
    assert table.select(["id", "text", "mention", "target"]).to_pylist() == [
        {"id": "e1/0-5", "text": "Paris", "mention": "Paris", "target": "Paris"},
        {
            "id": "Q1/0-18",
            "text": "Georgios Theotokis: Greek politician",
            "mention": "Georgios Theotokis",
            "target": "Georgios Theotokis",
        },
        {"id": "Q2/0-13", "text": "New York City", "mention": "New York City", "target": "New York City"},
        {"id": "Q2/0-3", "text": "NYC", "mention": "NYC", "target": "New York City"},
        {"id": "Q2/0-9", "text": "Big Apple", "mention": "Big Apple", "target": "New York City"},
        {"id": "Q3/0-5", "text": "Paris", "mention": "Paris", "target": "Paris"},
    ]


PARIS = EXAMPLES[0]


def retrieved(workspace: Workspace, folder: Path, line: dict[str, Any], *settings: str) -> dict[str, Any]:
    """The one row that Retrieve and Assemble make of an official line, under such settings."""
    file = folder / "train.json"
    file.write_text(json.dumps(line))
    config = load(None, workspace.facts["settings"], ["retrieve.shared_sets=0", *settings])
    opened = Workspace.open(workspace.folder, config)
    segment = linking_graph(config, opened).segment(["detect", "encode", "retrieve", "assemble"], opened)
    row: dict[str, Any] = asyncio.run(segment.run(next(documents(str(file))))).to_pylist()[0]
    segment.close()
    return row


def shown(workspace: Workspace, folder: Path, *settings: str) -> list[str]:
    """Demonstrations of the caption "Paris", as such settings find them, most similar last."""
    found: list[str] = retrieved(workspace, folder, PARIS, *settings)["demonstrations"]
    return found


def test_a_caption_that_is_a_name_is_shown_the_name_but_not_itself(
    workspace: Workspace, tmp_path: Path
) -> None:
    found = shown(workspace, tmp_path)
    assert found[-1] == "Q3/0-5"  # the most similar stands last
    assert len(found) == 5
    assert "e1/0-5" not in found


def test_names_can_be_left_out_when_linking(workspace: Workspace, tmp_path: Path) -> None:
    without = ("retrieve.names=false", "retrieve.allow_itself=true")
    assert shown(workspace, tmp_path, *without) == ["e1/0-5"]
    assert shown(workspace, tmp_path, "retrieve.allow_itself=true")[-2:] == ["Q3/0-5", "e1/0-5"]


def test_examples_can_be_chosen_at_random(workspace: Workspace, tmp_path: Path) -> None:
    assert shown(workspace, tmp_path, "retrieve.by=random", "retrieve.allow_itself=true") == ["e1/0-5"]


def test_a_bank_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "kb.jsonl").write_text("\n".join(map(json.dumps, ENTITIES)))
    config = load(None, {}, ["bank.names=0"])
    build(config, str(tmp_path / "kb.jsonl"), [], tmp_path / "workspace", print)
    row = retrieved(Workspace.open(tmp_path / "workspace", config), tmp_path, PARIS)
    assert (row["demonstrations"], row["votes"]) == ([], [])


def test_an_entity_s_names_are_encoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build counts documents, which are entities, in each batch."""
    monkeypatch.setattr(writing, "BATCH", 2)
    rows: Any = [{"description": None, "image": None, "aliases": None} | row for row in ENTITIES]
    batches = [table["document_id"].to_pylist() for table in name_examples(forms(rows))]
    assert batches == [["Q1", "Q2", "Q2", "Q2"], ["Q3"]]


def test_a_large_knowledge_base_is_not_shown(tmp_path: Path) -> None:
    assert made(tmp_path, "bank.names=2").bank.table["id"].to_pylist() == ["e1/0-5"]


def test_an_example_that_holds_all_words_is_nearer(workspace: Workspace, tmp_path: Path) -> None:
    """By just what is configured, and it is what the neighbours vote with."""
    line = {"id": "d", "text": "The Apple at night", "mention": "Apple"}

    def found(*settings: str) -> dict[str, float]:
        """Cosines, but for what is added to all of them."""
        row = retrieved(workspace, tmp_path, line, *settings)
        near = TEMPERATURE * np.log(row["votes"])
        assert near == pytest.approx(sorted(near), abs=1e-5)  # the most similar stands last
        return dict(zip(row["demonstrations"], near.tolist(), strict=True))

    alone, with_words = found("retrieve.word_bonus=0"), found("retrieve.word_bonus=0.5")
    assert alone.keys() == with_words.keys()
    apart = {name: with_words[name] - cosine for name, cosine in alone.items()}
    others = {name: more for name, more in apart.items() if name != "Q2/0-9"}
    assert apart["Q2/0-9"] - 0.5 == pytest.approx(next(iter(others.values())), abs=1e-5)
    assert list(others.values()) == pytest.approx([next(iter(others.values()))] * len(others), abs=1e-5)
    assert list(with_words)[-1] == "Q2/0-9"


def pictured(folder: Path, *settings: str) -> Workspace:
    """A workspace of three examples: a wide red picture, the same once more, and none."""
    Image.new("RGB", (640, 320), "red").save(folder / "red.png")
    lines = [
        {"id": name, "text": "Paris", "image": image, "mentions": [{"start": 0, "end": 5, "target": "Paris"}]}
        for name, image in (("e1", "red.png"), ("e2", "red.png"), ("e3", None))
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "kb.jsonl").write_text(json.dumps(ENTITIES[2]))
    output, asked = folder / "workspace", ("bank.names=0", *settings)
    build(load(None, {}, asked), str(folder / "kb.jsonl"), [str(folder / "train.jsonl")], output, print)
    return Workspace.open(output, load(None, read_facts(output)["settings"], asked))


def test_a_demonstration_is_found_by_its_id_and_shows_its_picture(tmp_path: Path) -> None:
    bank = pictured(tmp_path).bank
    assert [bank.row(f"{name}/0-5") for name in ("e1", "e2", "e3", "e4")] == [0, 1, 2, None]
    small = bank.thumbnail(0)
    assert small is not None
    image = Image.open(BytesIO(small))
    assert (image.format, image.size) == ("JPEG", (160, 80))
    assert image.getpixel((80, 40))[0] > 200  # type: ignore[index]  # still red
    assert bank.thumbnail(1) == small
    assert bank.thumbnail(2) is None


def test_thumbnails_are_left_out_when_so_configured_and_change_no_version(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    without = pictured(tmp_path / "without", "bank.thumbnails=false")
    assert not (without.folder / "bank" / "thumbnails.arrow").exists()
    assert without.bank.thumbnail(0) is None
    assert without.version == pictured(tmp_path / "with").version


def test_a_picture_that_nobody_decoded_has_its_thumbnail_all_the_same(tmp_path: Path) -> None:
    """As where its feature was there already."""
    workspace = pictured(tmp_path)
    made, documents_ = Collected(True, ImageLimits()), next(documents(str(tmp_path / "train.jsonl")))
    found = made.of(documents_, [True, False, True]).to_pylist()
    assert found == [workspace.bank.thumbnail(0), None, None]


def asked(folder: Path, *more: str) -> int:
    (folder / "kb.jsonl").write_text(json.dumps(ENTITIES[2]))
    common = ["build", "--entities", str(folder / "kb.jsonl"), "--output", str(folder / "out")]
    return main([*common, "--set", "bank.names=0", *more])


def test_what_is_no_workspace_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for more in ((), ("--replace",)):
        assert asked(tmp_path, *more) == 2
        assert "out exists and is not a workspace: give a folder that is empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_workspace_is_replaced_when_asked_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    assert asked(tmp_path) == 0
    (tmp_path / "out" / "versions").mkdir()
    assert asked(tmp_path) == 2
    assert "out is a workspace already: --replace puts the new one in its place" in capsys.readouterr().err
    assert (tmp_path / "out" / "versions").exists()
    assert asked(tmp_path, "--replace") == 0
    assert not (tmp_path / "out" / "versions").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kb.jsonl", "out"]


def built(folder: Path, entities: list[dict[str, Any]], examples: list[dict[str, Any]]) -> tuple[Any, str]:
    """The bank that such files make, without the knowledge base's own names, and what the build said."""
    said: list[str] = []
    for name, rows in (("kb.jsonl", entities), ("train.jsonl", examples)):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    output, config = folder / "workspace", load(None, {}, ["bank.names=0"])
    made = build(config, str(folder / "kb.jsonl"), [str(folder / "train.jsonl")], output, said.append)
    said += made.rejects.lines("left out")
    assert (made.unknown_targets, made.doubtful_targets) == (2, 1)
    return Workspace.open(output, config), "\n".join(said)


def test_an_example_s_target_becomes_a_name_and_the_first_of_two_entities_with_one_id_counts(
    tmp_path: Path,
) -> None:
    """An example never teaches the model to write an id, nor another entity's name."""
    entities = [
        {"id": "Q1", "name": "Boston"}, {"id": 2.0, "name": "Paris, Texas"},
        {"id": 2, "name": "Paris, Ontario"},
        {"id": "Q3", "name": "New\u00a0York", "aliases": ["Big\u00a0Apple"]}, {"id": "Q4", "name": "Q5"},
        {"id": "Q5", "name": "Gabon"},
    ]  # fmt: skip
    targets = [
        {"target": "Q1"}, {"target_id": 2}, {"target": "Paris, Texas", "target_id": 2},
        {"target": "New York "}, {"target": "Q5"}, {"target": "Q77"}, {"target": "Q78"},
    ]  # fmt: skip
    examples = [{"id": f"e{i}", "text": f"x{i}", "mentions": [{"mention": f"x{i}"} | t]}
                for i, t in enumerate(targets)]  # fmt: skip
    workspace, said = built(tmp_path, entities, examples)
    assert workspace.bank.table["target"].to_pylist() == [
        "Boston", "Paris, Texas", "Paris, Texas", "New York", "Q5", "Q77", "Q78",
    ]  # fmt: skip
    assert list(workspace.entities.names()) == ["Boston", "Paris, Texas", "New York", "Q5", "Gabon"]
    assert "kb.jsonl:3: the id '2' of 'Paris, Ontario' is that of 'Paris, Texas' (line 2)" in said
    assert "targets are not an entity's name or id" not in said  # two of seven


def test_where_most_targets_are_unknown_that_is_said_first(tmp_path: Path) -> None:
    known = Targets([("Q1", "Boston")])
    for unknown, warned in ((1, False), (3, True)):
        rows = [
            {"text": "x", "mentions": [{"mention": "x", "target": f"Q{i}"}]} for i in range(1, unknown + 2)
        ]
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        said = list(first_targets([str(path)], known))
        assert bool(said) == warned
    assert "3 of the first 4 targets are not an entity's name or id: 'Q2', 'Q3', 'Q4'" in said[0]


def test_documents_without_targets_are_reported_as_no_examples(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("caption,image\nBoston in spring,a.jpg\n")
    (said,) = first_targets([str(tmp_path / "train.csv")], Targets([("Q1", "Boston")]))
    assert "none of the first 1 documents has a mention with a target" in said


def test_a_file_without_any_entity_says_why(tmp_path: Path) -> None:
    for content, why in (("[1, 2]", "an entity is an object with id and name"), ("", "the file is empty")):
        (tmp_path / "kb.json").write_text(content)
        with pytest.raises(ValueError, match=f"kb.json holds no entity: .*{why}"):
            build(load(None, {}, []), str(tmp_path / "kb.json"), [], tmp_path / "workspace", print)
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("size", [None, 9])
def test_a_document_whose_picture_cannot_be_read_is_linked_by_its_text_if_wanted(
    workspace: Workspace, tmp_path: Path, size: int | None
) -> None:
    """A picture that is filtered out is an error all the same."""
    if size:
        Image.new("RGB", (size, size)).save(tmp_path / "a.png")
    line = {"text": "Paris in spring", "mentions": ["Paris"], "image": "a.png"}
    reason = "filtered: a side of 9 pixels" if size else "there is no such file"
    assert reason in retrieved(workspace, tmp_path, line, "encode.min_side=20")["error"]
    row = retrieved(workspace, tmp_path, line, "encode.min_side=20", "encode.unreadable=text")
    assert reason in str(row["error"] if size else row["note"])
    assert (row["error"] is None) == (size is None)
