"""A whole study of a workspace whose ranker answers alone: no engine, no Ray, real everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from files import lines

from gemel_ray.cli import main
from gemel_ray.study import cells
from gemel_ray.study.cells import Cell

TRADES = ("oil painter", "goalkeeper", "comet hunter", "senator")
NAMES = ("Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine", "Grimaldi", "Halonen")
FIRST = ("Ada", "Bo", "Cyd", "Dov")
SET = ("bank.ranker=20", "generate.ranking=1", "retrieve.demonstrations=4")
CHOSEN = (
    Cell("impossible", ("retrieve.nearest=99",)),
    Cell("without the language model", ("generate.ranking=1",)),
    Cell("descriptions hidden", ("retrieve.descriptions=false",)),
    Cell("fitted with another seed", seed=1),
    Cell("without description", without="description"),
    Cell("without name", without="name"),
    Cell("without knowledge graph", without="knowledge graph"),
    Cell("mentions in capitals", variant="capitals"),
)


def test_a_study_of_rankers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is meant, only descriptions tell. The second command, of another group, does nothing again."""
    people = [
        (f"Q{s}{t}", f"{FIRST[t]} {who}", who, trade)
        for s, who in enumerate(NAMES)
        for t, trade in enumerate(TRADES)
    ]
    kb = lines(tmp_path / "kb.jsonl", [{"id": i, "name": n, "description": t} for i, n, _, t in people])
    solved = [
        {"id": i, "text": f"{who}, the {trade}.", "mention": who, "target": n} for i, n, who, trade in people
    ]
    train, gold = (
        lines(tmp_path / f"{name}.jsonl", part)
        for name, part in (("train", solved[:-8]), ("gold", solved[-8:]))
    )
    own = [part for setting in SET for part in ("--set", setting)]
    folder, output = str(tmp_path / "kb"), tmp_path / "study"
    assert main(["build", "--entities", kb, "--demonstrations", train, "--output", folder, *own]) == 0
    asked = ["study", "--gold", gold, "--workspace", folder, "--output", str(output), *own, "--only"]
    monkeypatch.setattr(cells, "GROUPS", cells.GROUPS)
    monkeypatch.setitem(cells.GROUPS, "parts", CHOSEN)
    capsys.readouterr()
    assert main([*asked, "parts"]) == 1
    told = capsys.readouterr()
    assert "Ray" not in told.err
    found = json.loads((output / "study.json").read_text())
    rows = {row["cell"]: row for row in found["cells"]}
    assert [one["cell"] for one in found["failed"]] == ["impossible"]
    assert [one["cell"] for one in found["left_out"]] == ["without knowledge graph"]
    assert list(rows) == [c.name for c in CHOSEN if c.name not in ("impossible", "without knowledge graph")]
    base = found["base"]
    assert rows["without the language model"]["run"] == base["run"]
    assert rows["descriptions hidden"]["accuracy"]["value"] < base["accuracy"]["value"]
    assert base["asked"] == 0
    assert base["processor"]["retrieve"] > 0
    for name, row in rows.items():
        assert row["pace"] > 0
        assert (row["making"] is not None) == (
            "fitted" in name or name in ("without name", "without description")
        )
    made = {file: file.stat().st_mtime_ns for file in output.rglob("manifest.json")}
    assert len(made) == 6  # the base is one of the rows
    assert main([*asked, "prefix"]) == 0  # nothing that can be measured, and rows of other groups stay
    later = json.loads((output / "study.json").read_text())
    assert (later["cells"], later["failed"]) == (found["cells"], found["failed"])
    monkeypatch.setitem(cells.GROUPS, "parts", CHOSEN[1:])
    assert main([*asked, "parts"]) == 0
    assert {file: file.stat().st_mtime_ns for file in output.rglob("manifest.json")} == made
    again = json.loads((output / "study.json").read_text())
    assert again["cells"] == found["cells"]
    assert again["failed"] == []
