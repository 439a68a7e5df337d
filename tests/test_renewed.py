"""The running engine takes over another version of the knowledge: nobody waits, nobody is answered wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.config import Config
from gemel_ray.knowledge.entity_rows import entity
from gemel_ray.knowledge.next_version import Change, change
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.stage import Segment

pytestmark = pytest.mark.slow
NEW = {"id": "N1", "name": "Zyxwlor Works", "aliases": ["Zyxwlor"]}
TEXT = "Zyxwlor and Adobe opened a shop in Paris."
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(workspace_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that these tests may change."""
    return Path(shutil.copytree(workspace_folder, tmp_path_factory.mktemp("changing") / "workspace"))


@pytest.fixture(scope="module")
def former(folder: Path, config: Config, generating: Any) -> Segment:
    """The whole graph on version 0, with the tests' one engine."""
    workspace = Workspace.open(folder, config, "0")
    graph = linking_graph(config, workspace)
    return graph.segment(graph.names, workspace, {"generate": generating.renewed(workspace)})


@pytest.fixture(scope="module")
def renewed(folder: Path, config: Config, former: Segment) -> Segment:
    version = change(folder, config, Change(entities=[entity(NEW)], removed=["adobe"]), print)
    opened = Workspace.open(folder, config, version)
    return former.renewed(opened, config.fingerprint(opened.version))


def asked(folder: Path, count: int) -> Any:
    lines = [
        {"id": f"d{i}", "text": f"{TEXT} {i}", "mentions": [{"start": 0, "end": 7}, {"start": 12, "end": 17}]}
        for i in range(count)
    ]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return next(documents(str(folder / "asked.jsonl")))


def same(one: Rows, other: Rows) -> bool:
    """Links to the same names, and by the same knowledge."""
    return [(r["entity_id"], r["fingerprint"]) for r in one] == [
        (r["entity_id"], r["fingerprint"]) for r in other
    ]


def test_both_versions_answer_at_once_each_by_its_own_tree(
    former: Segment, renewed: Segment, generating: Any, tmp_path: Path
) -> None:
    many, few = asked(tmp_path, 6), asked(tmp_path, 2)

    async def at_once() -> tuple[Rows, Rows]:
        before = asyncio.create_task(former.run(many))
        while not generating.engine.busy:  # its first prompts are being computed
            assert not before.done()
            await asyncio.sleep(0.001)
        after = await renewed.run(few)
        return (await before).to_pylist(), after.to_pylist()

    old, new = asyncio.run(at_once())
    assert {row["status"] for row in (*old, *new)} == {"linked"}
    assert [row["entity_id"] for row in new if row["mention"] == "Zyxwlor"] == ["N1", "N1"]
    assert all(row["entity"] == "Adobe" for row in old if row["mention"] == "Adobe")
    names = [{c["entity"] for row in rows for c in row["candidates"]} for rows in (old, new)]
    assert "Zyxwlor Works" not in names[0]
    assert "Adobe" not in names[1]
    assert {row["fingerprint"] for row in old} == {former.fingerprint}
    assert {row["fingerprint"] for row in new} == {renewed.fingerprint}
    # And neither was disturbed by the other.
    assert same(asyncio.run(former.run(many)).to_pylist(), old)
    assert same(asyncio.run(renewed.run(few)).to_pylist(), new)


def test_pictures_that_both_versions_have_are_mapped_once(former: Segment, renewed: Segment) -> None:
    ours, theirs = (segment.steps[4].work.prompts for segment in (former, renewed))  # type: ignore[attr-defined]
    assert ours._prefixes is theirs._prefixes
