"""Entities as files give them, and gold targets as names of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.knowledge import entities
from gemel_ray.knowledge.targets import Targets

MIMIC = {"id": 0, "qid": "Q42", "entity_name": "Douglas%20Adams", "attr": "Sex: male", "type": "entity",
         "image_list": ["42.jpg", "43.jpg"]}  # fmt: skip


def read(folder: Path, value: Any) -> tuple[list[dict[str, Any]], list[str]]:
    path, rejects = folder / "kb.json", list[str]()
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return list(entities.read(str(path), rejects)), rejects


@pytest.mark.parametrize(
    "spelled", [[MIMIC], json.dumps(MIMIC), {"Q42": MIMIC | {"entity_name": "Douglas_Adams"}}]
)
def test_mimic_s_entities_are_read_in_an_array_lines_or_an_object(tmp_path: Path, spelled: Any) -> None:
    (made,), rejects = read(tmp_path, spelled)
    assert rejects == []
    assert (made["id"], made["name"]) == ("Q42", "Douglas Adams")
    assert (made["description"], made["image"]) == ("Sex: male", "42.jpg")


def test_an_entity_that_is_none_is_told_and_the_next_is_read(tmp_path: Path) -> None:
    wrong = [{"entity_name": "no id"}, {"qid": "Q1", "entity_name": 5}, {"qid": "Q1", "entity_name": " "}, 7]
    made, rejects = read(tmp_path, [MIMIC, *wrong, {"id": "Q2", "name": "ours"}])
    assert [e["id"] for e in made] == ["Q42", "Q2"]
    assert [r.partition("kb.json:")[2] for r in rejects] == [
        "2: an entity needs an id", "3: an entity needs a name", "4: an entity needs a name",
        "5: not a JSON object",
    ]  # fmt: skip


def test_lines_that_are_no_json_are_told_by_their_number(tmp_path: Path) -> None:
    made, rejects = read(tmp_path, '{"id": "Q2", "name": "ours"}\n\n{"id"\n{"id": 3, "name": "b"}')
    assert [e["id"] for e in made] == ["Q2", "3"]
    assert "kb.json:3: line 3 is not JSON" in rejects[0]


def test_targets_become_names_of_the_knowledge_base(tmp_path: Path) -> None:
    rows = [{"id": "Q1", "name": "Apple Inc."}, {"id": "Q2", "name": "Apple"}]
    known = Targets(entities.write(rows, tmp_path / "entities.arrow").pairs())
    assert known.name(None, "Q1") == "Apple Inc."  # gold with an id only
    assert known.name("Apple Computer", "Q1") == "Apple Inc."  # another spelling
    assert known.name("Apple", "Q1") == "Apple"  # a name of the knowledge base stays
    assert known.name("Pear", "Q9") == known.name("Pear", None) == "Pear"
    assert known.name(None, "NIL") is known.name(None, None) is None
    assert "Apple" in known
    assert "Pear" not in known
