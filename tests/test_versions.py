"""Changes of a workspace's knowledge: real tree, bank, vectors and mention encoder; no language model."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.entity_rows import entity
from gemel_ray.knowledge.next_version import Change, change, history
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.serving.running import Running
from gemel_ray.stage import Segment

ENTITIES = [
    {"id": "Q1", "name": "Georgios Theotokis", "description": "Greek politician"},
    {"id": "Q2", "name": "New York City", "aliases": ["NYC", "Big Apple"]},
    {"id": "Q3", "name": "Paris"},
    {"id": "Q4", "name": "New York", "description": "a state"},
]
SOLVED = {"id": "e1", "text": "Paris", "mention": "Paris", "target": "Paris", "golden": "Q3"}
MORE = {"id": "e2", "text": "He flew to Rome", "mention": "Rome", "target": "Rome", "golden": "Q5"}
ROME = {"id": "Q5", "name": "Rome", "aliases": ["Roma"], "description": "capital of Italy"}
SETTINGS = ("retrieve.demonstrations=4", "retrieve.shared_sets=0")


def lines(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def built(
    folder: Path,
    entities: list[dict[str, Any]],
    *solved: dict[str, Any],
    settings: Sequence[str] = SETTINGS,
) -> Path:
    folder.mkdir(exist_ok=True)
    kb, train = lines(folder / "kb.jsonl", *entities), lines(folder / "train.json", *solved)
    build(load(None, {}, settings), kb, [train], folder / "workspace", print)
    return folder / "workspace"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("made"), ENTITIES, SOLVED)


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A workspace of its own for a test."""
    return Path(shutil.copytree(made, tmp_path / "workspace"))


def configured(workspace: Workspace) -> Config:
    return load(None, workspace.facts["settings"], SETTINGS)


def opened(folder: Path, version: str | None = None) -> Workspace:
    return Workspace.open(folder, load(None, read_facts(folder)["settings"], SETTINGS), version)


def changed(folder: Path, **wanted: Any) -> Workspace:
    config = load(None, read_facts(folder)["settings"], SETTINGS)
    return opened(folder, change(folder, config, Change(**wanted), print))


def names(workspace: Workspace) -> dict[str, list[str]]:
    """Every name of the tree, with the ids of those that bear it."""
    spelled = ((path[:-1], workspace.tree.entities([leaf])[0]) for path, leaf in workspace.tree.names())
    return {workspace.tokenizer.decode(p): [i for i, _ in workspace.entities.of(rows)] for p, rows in spelled}


def shown(workspace: Workspace) -> list[tuple[str, str, str]]:
    """What the bank shows: ids, mentions and targets."""
    columns = workspace.bank.table.select(["id", "mention", "target"]).to_pylist()
    return [(row["id"], row["mention"], row["target"]) for row in columns]


def found(workspace: Workspace, folder: Path, mention: str) -> list[str]:
    """Demonstrations of a mention, most similar last."""
    file = lines(folder / "asked.json", {"id": "d", "text": f"In {mention}.", "mention": mention})
    graph = linking_graph(configured(workspace), workspace)
    segment = graph.segment(["detect", "encode", "retrieve", "assemble"], workspace)
    row: dict[str, Any] = asyncio.run(segment.run(next(documents(file)))).to_pylist()[0]
    segment.close()
    listed: list[str] = row["demonstrations"]
    return listed


def test_what_is_added_is_what_a_build_of_all_would_have(workspace: Path, tmp_path: Path) -> None:
    """The same tree to the last number, the same bank rows and vectors, the same examples found."""
    after = changed(workspace, entities=[entity(ROME)], demonstrations=[lines(tmp_path / "more.json", MORE)])
    whole = opened(built(tmp_path / "whole", [*ENTITIES, ROME], SOLVED, MORE))
    assert after.entities.table.to_pylist() == whole.entities.table.to_pylist()
    for array in ("token", "first_child", "leaf", "first_bearer", "bearer"):
        np.testing.assert_array_equal(getattr(after.tree, array), getattr(whole.tree, array))
    assert after.tree.depth == whole.tree.depth
    assert after.bank.table.to_pylist() == whole.bank.table.to_pylist()
    assert after.bank.examples == whole.bank.examples == 2
    flew = ["He flew to Rome"], ["Rome"], [None]
    assert after.bank.same(*flew) == whole.bank.same(*flew) != [[]]
    np.testing.assert_allclose(after.bank.mention_vectors, whole.bank.mention_vectors, atol=1e-5)
    assert after.facts["multiplicity"] == whole.facts["multiplicity"]
    for mention in ("Roma", "Paris", "York"):
        assert found(after, tmp_path, mention) == found(whole, tmp_path, mention)
    assert found(after, tmp_path, "Roma")[-1] == "Q5/0-4"


def test_what_is_removed_is_nowhere_and_the_rest_is_as_it_was(workspace: Path, tmp_path: Path) -> None:
    after = changed(workspace, removed=["Q2"])
    before = opened(workspace, "0")
    assert names(after) == {n: ids for n, ids in names(before).items() if ids != ["Q2"]}
    assert shown(after) == [row for row in shown(before) if not row[0].startswith("Q2/")]
    kept = [row for row, (name, _, _) in enumerate(shown(before)) if not name.startswith("Q2/")]
    np.testing.assert_array_equal(after.bank.mention_vectors, before.bank.mention_vectors[kept])
    assert "Q2" not in "".join(found(after, tmp_path, "NYC"))
    assert "Q2/0-3" in found(before, tmp_path, "NYC")


def test_an_alias_is_found_and_the_name_stays_what_is_written(workspace: Path, tmp_path: Path) -> None:
    after = changed(workspace, aliases={"Q3": ["City of Light"]})
    before = opened(workspace, "0")
    assert names(after) == names(before)
    assert ("Q3/0-13", "City of Light", "Paris") in shown(after)
    assert found(after, tmp_path, "City of Light")[-1] == "Q3/0-13"
    assert "City of Light" in set(after.entities.surface_forms()) - set(before.entities.surface_forms())


def test_nothing_that_stays_is_encoded_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Workspace.mention_encoder

    def listening(self: Workspace, device: str, dtype: str) -> Callable[[list[str]], Any]:
        encode = real(self, device, dtype)
        return lambda texts: (asked.extend(texts), encode(texts))[1]

    monkeypatch.setattr(Workspace, "mention_encoder", listening)
    changed(workspace, entities=[entity(ROME)])
    assert sorted(asked) == ["Roma", "Rome", "Rome: capital of Italy"]
    changed(workspace, removed=["Q1"])
    assert len(asked) == 3


def test_a_name_stays_as_it_was_spelled(workspace: Path) -> None:
    """import-gemel takes tokens from GEMEL's own files: no change tokenises them anew."""
    before = opened(workspace)
    tokens, start = before.tree.spelled()
    for row, name in enumerate(before.entities.names()):
        spelled = tokens[start[row] : start[row + 1]].tolist()
        assert spelled == [*before.tokenize([name])[0], before.tree.end_token]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "--id", "Q3", "--name", "Paree"], "entity Q3 is there already"),
        (["add", "--id", "Q9", "--name", "  "], "an entity needs a name"),
        (["add", "--name", "Nameless"], "needs both --id and --name"),
        (["add", "--id", "Q9", "--name", "X", "--image", "nowhere.jpg"], "nowhere.jpg"),
        (["add", "--entities", "TWICE"], "entity Q7 is given twice"),
        (["add", "--entities", "BROKEN"], "BROKEN:2"),
        (["add", "--demonstrations", "OLD.json"], "all 1 are there already"),
        (["add"], "nothing to add"),
        (["remove", "Q3", "Q77"], "entity Q77 is not in the knowledge base"),
        (["remove", "Q1", "Q2", "Q3", "Q4"], "the knowledge base has no entities"),
        (["alias", "Q99", "x"], "entity Q99 is not in the knowledge base"),
        (["remove", "Paris"], "an entity is given by its id, not by its name"),
        (["alias", "Q3", "Paris"], "Q3 (Paris) has the name 'Paris' already"),
        (["alias", "Q3", "a", "a"], "Q3 (Paris) has the name 'a' already"),
        (["alias", "Q3", " "], "an alias of Q3 is empty"),
        (["rollback"], "first version"),
        (["rollback", "9"], "has no version 9; there are: 0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "TWICE", {"id": "Q7", "name": "a"}, {"id": "Q7", "name": "b"})
    lines(tmp_path / "BROKEN", {"id": "Q7", "name": "a"}, {"id": "Q8", "name": ""})
    lines(tmp_path / "OLD.json", SOLVED)
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file() and p.name != "lock"}
    assert main(["kb", words[0], "--workspace", str(made), *words[1:]]) == 2
    assert says in capsys.readouterr().err
    assert versions.known(made) == ["0"]
    assert versions.current(made) == "0"
    assert [p.name for p in (made / "versions").iterdir()] == ["lock"]
    assert {p: p.read_bytes() for p in made.rglob("*") if p.is_file() and p.name != "lock"} == before


def test_versions_are_listed_and_taken_back(workspace: Path, capsys: Any) -> None:
    changed(workspace, entities=[entity(ROME)])
    changed(workspace, removed=["Q1"])
    assert main(["kb", "rollback", "--workspace", str(workspace)]) == 0
    assert versions.current(workspace) == "1"
    after = changed(workspace, aliases={"Q3": ["Paree"]})
    assert after.knowledge == "3"
    assert "Georgios Theotokis" in names(after)  # what was taken back is not in what came after
    capsys.readouterr()
    assert main(["kb", "list", "--workspace", str(workspace)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["0", "1", "2", "*"]
    assert "Q5 (Rome)" in told[1]
    assert "Q3 'Paree'" in told[3]
    assert [row["former"] for row in history(workspace)] == [None, "0", "1", "1"]
    assert main(["kb", "rollback", "--workspace", str(workspace), "0"]) == 0
    assert opened(workspace).version == opened(workspace, "0").version != after.version


def test_what_is_unchanged_is_the_same_file(workspace: Path) -> None:
    def shared(version: str) -> set[str]:
        inside = versions.folder(workspace, version)
        return {
            str(p.relative_to(inside)) for p in inside.rglob("*") if p.is_file() and p.stat().st_nlink > 1
        }

    changed(workspace, aliases={"Q3": ["Paree"]})
    assert {"tree/token.npy", "tree/bearer.npy", "bank/keys.npy"} <= shared("1")
    assert not {"entities.arrow", "bank/bank.arrow", "workspace.json"} & shared("1")
    assert not any(file.startswith("vectors") for file in shared("1"))  # Qdrant writes in them


def test_a_bank_without_names_is_shared_by_version_after_version(tmp_path: Path) -> None:
    """As that of a large knowledge base. The rest of a link once stopped the second change."""
    folder = built(tmp_path, ENTITIES, SOLVED, settings=(*SETTINGS, "bank.names=0"))
    for entity_id in ("Q11", "Q12"):
        changed(folder, entities=[entity({"id": entity_id, "name": "Somebody"})])
    banks = [folder / "bank", *(folder / "versions" / number / "bank" for number in "12")]
    inodes = [{file.name: file.stat().st_ino for file in bank.iterdir()} for bank in banks]
    assert inodes[0] == inodes[1] == inodes[2]


def test_equal_knowledge_has_an_equal_version_however_it_came_about(workspace: Path) -> None:
    first = changed(workspace, entities=[entity(ROME)])
    changed(workspace, aliases={"Q5": ["Roman"]})
    assert changed(workspace, removed=["Q5"]).version != first.version
    assert changed(workspace, entities=[entity(ROME)]).version == first.version


def test_two_changes_at_once_are_both_made(workspace: Path) -> None:
    """Two processes would do the same: the lock belongs to an open file, not to a process."""
    config, told = load(None, read_facts(workspace)["settings"], SETTINGS), list[str]()
    waiting = threading.Semaphore(0)

    def say(line: str) -> None:
        told.append(line)
        if "is at work" in line:
            waiting.release()

    def add(number: str) -> str:
        return change(workspace, config, Change(entities=[entity({"id": number, "name": number})]), say)

    with ThreadPoolExecutor(2) as both:
        with versions.locked(workspace, say):  # so that both find it taken, whoever is faster
            made = [both.submit(add, number) for number in ("N1", "N2")]
            assert all(waiting.acquire(timeout=300) for _ in made)
            assert versions.known(workspace) == ["0"]
        assert sorted(one.result() for one in made) == ["1", "2"]
    assert {"N1", "N2"} <= set(names(opened(workspace)))


def test_what_a_killed_change_left_is_cleared_away(workspace: Path) -> None:
    half = workspace / "versions" / ".1-abc"
    half.mkdir(parents=True)
    (half / "entities.arrow").write_bytes(b"half")
    assert changed(workspace, removed=["Q1"]).knowledge == "1"
    assert not half.exists()


def test_a_workspace_stays_with_the_version_it_opened(workspace: Path) -> None:
    config = load(None, read_facts(workspace)["settings"], SETTINGS)
    before = Workspace.open(workspace, config)  # nothing of it is read yet
    changed(workspace, removed=["Q2"])
    assert "New York City" in names(before)
    assert before.knowledge == "0"


@pytest.fixture
def started(workspace: Path) -> Iterator[Segment]:
    """All stages but the language model's."""
    now = opened(workspace)
    segment = linking_graph(configured(now), now).segment(["detect", "encode", "retrieve", "assemble"], now)
    yield segment
    segment.close()


def test_a_renewed_segment_knows_what_is_new_and_the_former_ends_in_peace(
    workspace: Path, started: Segment, tmp_path: Path
) -> None:
    table = next(documents(lines(tmp_path / "d.jsonl", {"id": "d", "text": "He is in Roma today."})))

    async def mentions(segment: Segment) -> list[str]:
        return [m for m in (await segment.run(table))["mention"].to_pylist() if m]

    after = changed(workspace, entities=[entity(ROME)])

    async def over() -> None:
        assert await mentions(started) == []
        renewed = started.renewed(after, configured(after).fingerprint(after.version))
        assert renewed.steps[1].work is started.steps[1].work  # the encoder's models are not loaded again
        former = Running(started, 1)
        under_way = asyncio.create_task(former.run(table))
        await asyncio.sleep(0)
        retired = asyncio.create_task(former.retire())
        await asyncio.sleep(0)
        assert not retired.done()  # a batch is under way
        assert await mentions(renewed) == ["Roma"]
        rows, _ = await under_way
        assert rows["mention"].to_pylist() == [None]
        await retired
        assert await mentions(renewed) == ["Roma"]
        assert (started.knowledge, renewed.knowledge) == ("0", "1")
        assert started.fingerprint != renewed.fingerprint
        renewed.steps[2].work.retire()

    asyncio.run(over())


def test_a_segment_that_cannot_be_renewed_goes_on(workspace: Path, started: Segment, tmp_path: Path) -> None:
    broken = changed(workspace, entities=[entity(ROME)])
    shutil.rmtree(versions.folder(workspace, "1") / "bank")
    with pytest.raises(OSError, match="bank"):
        started.renewed(broken, "")
    table = next(documents(lines(tmp_path / "d.jsonl", {"id": "d", "text": "In Paris."})))
    assert asyncio.run(started.run(table))["mention"].to_pylist() == ["Paris"]
