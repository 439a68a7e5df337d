"""A prompt has a budget: what is too long costs the farthest examples, then itself, and never every row."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from files import write_links

from gemel_ray.cli import main
from gemel_ray.commands.link import exit_status
from gemel_ray.config import Config, load
from gemel_ray.job import results
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.records import LINK
from gemel_ray.stages.assemble import cut, kept, query_text

HARBOUR = "The council met again and again to speak of the harbour. "
Row = dict[str, Any]


def written(folder: Path, name: str, *rows: Row) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def asked(text: str, mention: str = "Adobe", name: str = "d") -> Row:
    at = text.index(mention)
    return {"id": name, "text": text, "mentions": [{"start": at, "end": at + len(mention)}]}


def solved(text: str, target: str, name: str) -> Row:
    row = asked(text, target, name)
    row["mentions"][0]["target"] = target
    return row


@pytest.mark.parametrize(
    ("sizes", "shared", "question", "places"),
    [
        ([10, 20, 30], 3, 40, [0, 1, 2]),  # all fit
        ([20, 20, 30, 30], 4, 20, [2, 3]),  # the farthest are dropped: a quarter is kept for the question
        ([20, 20, 30, 30], 4, 5, [2, 3]),  # and not less of it for a shorter one: both begin alike
        ([20, 20, 30, 30], 4, 70, [3]),
        ([30, 900, 30], 3, 20, [0, 2]),  # one that never fits costs itself
        ([900], 1, 20, []),
        ([30, 30, 40, 10], 2, 20, [1, 3]),  # the set's share of the room, then the own nearest
        ([], 0, 20, []),
    ],
)  # fmt: skip
def test_examples_that_fit_are_shown(sizes: list[int], shared: int, question: int, places: list[int]) -> None:
    assert kept(sizes, shared, question, 100) == places


@pytest.mark.parametrize("where", ["at the start", "in the middle", "at the end"])
def test_a_text_is_cut_around_its_mention(workspace: Workspace, where: str) -> None:
    before = {"at the start": 0, "in the middle": 200, "at the end": 400}[where]
    text = f"{HARBOUR * before}Adobe spoke. {HARBOUR * (400 - before)}"
    at = text.index("Adobe")
    part = cut(workspace.tokenizer, text, (at, at + 5), 120, lambda p: query_text(p, "Adobe"))
    assert part is not None
    assert "Adobe" in part
    assert part in text
    (ids,) = workspace.tokenize([query_text(part, "Adobe")])
    assert 100 < len(ids) <= 120
    assert cut(workspace.tokenizer, text, (at, at + 5), 5, lambda p: query_text(p, "Adobe")) is None


def prompts(workspace: Workspace, config: Config, file: str) -> list[Row]:
    segment = linking_graph(config, workspace).segment(
        ["detect", "encode", "retrieve", "assemble"], workspace
    )
    rows = [row for table in documents(file) for row in asyncio.run(segment.run(table)).to_pylist()]
    segment.close()
    return rows


def test_the_farthest_examples_make_room_and_then_the_text_does(
    workspace: Workspace, config: Config, tmp_path: Path
) -> None:
    """Of 1,024 tokens, names included, with examples of 100 and more between them."""
    texts = [f"{HARBOUR * times}Adobe spoke." for times in (1, 70, 80, 2000)]
    file = written(tmp_path, "in.jsonl", *(asked(t, name=str(i)) for i, t in enumerate(texts)))
    own = replace(config, retrieve=replace(config.retrieve, demonstrations=8))
    opened = Workspace(workspace.folder, own, workspace.facts)
    rows = prompts(opened, own, file)
    room = config.generate.length - workspace.tree.depth
    shown = [len(row["demonstrations"]) for row in rows]
    assert shown[0] == 8 > shown[1] > 0
    for row in rows:
        assert row["error"] is None
        pictures = sum(number < 0 for number in row["prompt"])
        assert len(row["prompt"]) + pictures * (workspace.prefix - 1) <= room
        ids = workspace.bank.ids(row["shots"])
        places = [ids.index(name) for name in row["demonstrations"]]
        assert places == sorted(places), "in their order"
    assert [row["note"] for row in rows[:3]] == [None] * 3
    assert rows[3]["note"].startswith("the text was cut around its mention, to ")
    assert shown[3] > 0, "half of the room is left for examples"


def test_a_mention_without_end_is_its_row_s_error(
    workspace: Workspace, config: Config, tmp_path: Path
) -> None:
    text = HARBOUR * 120
    row = {"id": "long", "text": text, "mentions": [{"start": 0, "end": len(text) - 1}]}
    (found,) = prompts(workspace, config, written(tmp_path, "in.jsonl", row))
    assert found["error"].startswith("the mention 'The council met again")
    assert "too long" in found["error"]


def test_room_for_no_question_is_refused_with_advice_that_helps(workspace: Workspace) -> None:
    """Raising generate.length does not help beyond what the model takes."""
    own = load(None, workspace.facts["settings"], ["generate.length=40"])
    with pytest.raises(ValueError, match=r"longest name has 7 tokens.*set generate.length to 71 or more"):
        graph = linking_graph(own, workspace)
        graph.segment(["assemble"], workspace)


ENTITIES = [{"id": "Q1", "name": "Boston"}, {"id": "Q2", "name": "Gabon"}, {"id": "Q3", "name": "Paris"}]
LONG = {"id": "QX", "name": "An abstract " + " ".join(f"word{i}" for i in range(900))}
EXAMPLES = [
    solved("The mayor of Boston spoke.", "Boston", "t1"),
    solved(f"{HARBOUR * 300}Gabon is far. {HARBOUR * 300}", "Gabon", "big"),
    *(solved(f"{HARBOUR * 14}Paris in spring {i}.", "Paris", f"p{i}") for i in range(20)),
]


@pytest.fixture(scope="module")
def long_ones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace of which one name, and one example, are far too long, and many examples are long."""
    folder = tmp_path_factory.mktemp("long")
    kb = written(folder, "kb.jsonl", *ENTITIES[:2], LONG, ENTITIES[2])
    train = written(folder, "train.jsonl", *EXAMPLES)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("gemel_ray.commands.build.say", said.append)
        assert main(["build", "--entities", kb, "--demonstrations", train, "--output", str(folder / "ws"),
                     "--set", "generate.length=1024"]) == 0  # fmt: skip
    return folder / "ws", "\n".join(said)


def test_a_build_says_what_is_too_long(long_ones: tuple[Path, str]) -> None:
    folder, said = long_ones
    assert "kb.jsonl:3: the name 'An abstract word0" in said
    assert "more than bank.longest_name 256" in said
    assert "1 examples have more than bank.longest_example 512 tokens" in said
    assert "(big)" in said
    opened = Workspace.open(folder, load(None, read_facts(folder)["settings"], []))
    assert list(opened.entities.names()) == ["Boston", "Gabon", "Paris"]
    row = next(i for i in range(len(opened.bank)) if opened.bank.ids([i])[0].startswith("big/"))
    assert 300 < len(opened.bank.tokens(row)) <= 512
    assert "Gabon is far" in opened.tokenizer.decode(opened.bank.tokens(row))


def test_beside_long_names_and_examples_every_row_has_a_prompt(
    long_ones: tuple[Path, str], tmp_path: Path
) -> None:
    own = load(None, read_facts(long_ones[0])["settings"], ["generate.length=1024"])
    file = written(tmp_path, "in.jsonl", asked("A street in Boston.", "Boston"))
    (row,) = prompts(Workspace.open(long_ones[0], own), own, file)
    assert row["error"] is None
    assert 0 < len(row["demonstrations"]) < 16


def test_a_longer_name_is_not_added(long_ones: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    add = ["kb", "add", "--workspace", str(long_ones[0]), "--id", "QY", "--name", LONG["name"]]
    assert main(add) == 2
    assert "more than bank.longest_name 256; nothing was changed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_long_text_is_linked_and_its_row_says_so(
    workspace: Workspace, config: Config, generating: Any, tmp_path: Path
) -> None:
    graph = linking_graph(config, workspace)
    segment = graph.segment(graph.names, workspace, {"generate": generating})
    file = written(tmp_path, "in.jsonl", asked(f"{HARBOUR * 500}Adobe spoke."))
    (row,) = asyncio.run(segment.run(next(documents(file)))).to_pylist()
    segment.close()
    assert row["status"] == "linked"
    assert "the text was cut around its mention" in row["note"]
    assert row["start"] == len(HARBOUR) * 500


@pytest.mark.parametrize(
    ("errors", "strict", "status"),
    [
        (["the text is empty", "no picture"], False, 1),
        (["the text is empty", None], False, 0),
        (["the text is empty", None], True, 1),
        (["filtered: too short", "filtered: too short"], False, 0),
        ([None], True, 0),
        ([], False, 0),
    ],
)
def test_a_job_in_which_every_row_failed_says_so_by_its_exit(
    tmp_path: Path, errors: list[str | None], strict: bool, status: int
) -> None:
    rows = [
        dict.fromkeys(LINK.names)
        | {"document_id": f"d{i}", "status": "error" if error else "linked", "error": error}
        for i, error in enumerate(errors)
    ]
    write_links(rows, tmp_path)
    assert exit_status(results.counts(tmp_path), strict=strict) == status
