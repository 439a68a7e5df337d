"""Entities as files give them, and gold targets as names of these."""

from __future__ import annotations

import bz2
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemel_ray.knowledge import entities, entity_files
from gemel_ray.knowledge.entities import Rejects, Targets

MIMIC = {"id": 0, "qid": "Q42", "entity_name": "Douglas%20Adams", "attr": "Sex: male", "type": "entity",
         "image_list": ["42.jpg", "43.jpg"]}  # fmt: skip
Row = dict[str, Any]


def text(value: str) -> Row:
    return {"language": "en", "value": value}


def claim(item: str) -> Row:
    return {
        "mainsnak": {"snaktype": "value", "datavalue": {"type": "wikibase-entityid", "value": {"id": item}}}
    }


ADAMS = {
    "type": "item",
    "id": "Q42",
    "labels": {"de": text("Adams"), "en": text("Douglas  Adams")},
    "descriptions": {"en": text("English writer")},
    "aliases": {"en": [text("DNA"), text("Douglas Adams")], "de": [text("D. Adams")]},
    "claims": {"P31": [claim("Q5"), {"mainsnak": {"snaktype": "somevalue"}}]},
    "sitelinks": {"enwiki": {"title": "Douglas Adams"}, "dewiki": {}},
}
BARE = {"type": "item", "id": "Q7", "labels": {"fr": text("Sept")}, "descriptions": [], "aliases": [],
        "claims": [], "sitelinks": []}  # fmt: skip
PROPERTY = {"type": "property", "id": "P31", "labels": {"en": text("instance of")}}


def read(folder: Path, value: Any, name: str = "kb.json") -> tuple[list[Row], list[str]]:
    path, rejects = folder / name, list[str]()
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return list(entity_files.read(str(path), rejects.append)), rejects


def pairs(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row["id"], row["name"]) for row in rows]


@pytest.mark.parametrize(
    "spelled", [[MIMIC], json.dumps(MIMIC), {"Q42": MIMIC | {"entity_name": "Douglas_Adams"}}]
)
def test_mimic_s_entities_are_read_from_an_array_lines_or_an_object(tmp_path: Path, spelled: Any) -> None:
    (made,), rejects = read(tmp_path, spelled)
    assert rejects == []
    assert (made["id"], made["name"]) == ("Q42", "Douglas Adams")
    assert (made["description"], made["image"]) == ("Sex: male", "42.jpg")


def test_an_entity_that_is_none_is_told_and_the_next_is_read(tmp_path: Path) -> None:
    wrong = [
        {"entity_name": "no id"},
        {"qid": "Q1", "entity_name": [5]},
        {"qid": "Q1", "entity_name": " "},
        7,
    ]
    wrong += [{"id": "", "name": "empty"}, {"id": True, "name": "true"}, {"id": 1.5, "name": "broken"}]
    wrong += [{"id": "Q1", "name": "\ud83d"}, {"id": "\ud83d", "name": "a"}]
    made, rejects = read(tmp_path, [MIMIC, *wrong, {"id": "Q2", "name": "ours"}])
    assert [e["id"] for e in made] == ["Q42", "Q2"]
    assert [r.partition("kb.json:")[2] for r in rejects] == [
        "2: an entity needs an id, text or a whole number: it has none (its fields are entity_name)",
        "3: an entity needs a name: [5] is not one", "4: an entity needs a name: ' ' is not one",
        "5: an entity is an object with id and name, not 7",
        "6: an entity needs an id, text or a whole number: it has none (its fields are id, name)",
        "7: an entity needs an id, text or a whole number: True is not one",
        "8: an entity needs an id, text or a whole number: 1.5 is not one",
        "9: an entity needs a name: it holds half a surrogate pair: it is not valid Unicode",
        "10: an entity needs an id, text or a whole number: it holds half a surrogate pair: it is not valid "
        "Unicode",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "field", "kept", "said"),
    [
        ({"aliases": ["ok", "\ud83d", 5, " two\u00a0words "]}, "aliases", ["ok", "two words"], ["half", "5"]),
        ({"aliases": "Big Apple|NYC"}, "aliases", ["Big Apple", "NYC"], []),
        ({"aliases": [{"language": "en", "value": "Gotham"}]}, "aliases", ["Gotham"], []),
        ({"aliases": {"en": ["Gotham"], "de": [{"value": "G."}]}}, "aliases", ["Gotham", "G."], []),
        ({"aliases": ["ours", "Ours", "Ours"]}, "aliases", ["Ours"], []),  # the name itself is none
        ({"description": "\ud83d x"}, "description", None, ["not valid Unicode"]),
        ({"image": 5}, "image", None, ["not a text"]),
        ({"popularity": "12345"}, "popularity", 12345.0, []),
        ({"popularity": 10**400}, "popularity", None, ["that a float holds"]),
        ({"popularity": "many"}, "popularity", None, ["'many'"]),
        ({"popularity": True}, "popularity", None, ["True"]),
        ({"types": "Q5|Q6"}, "types", ["Q5", "Q6"], []),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_beside_the_name_costs_itself(
    tmp_path: Path, told: Row, field: str, kept: Any, said: list[str]
) -> None:
    (made,), rejects = read(tmp_path, {"id": "Q1", "name": "ours"} | told, "kb.jsonl")
    assert made[field] == kept
    assert len(rejects) == len(said)
    assert all(
        "kb.jsonl:1: the " in reject and part in reject for reject, part in zip(rejects, said, strict=True)
    )
    entities.write([made], tmp_path / "entities.arrow")


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"id": 1, "name": "Paris"}, ("1", "Paris")), ({"id": 5.0, "name": "Five"}, ("5", "Five")),
        ({"id": "Q3", "name": 300}, ("Q3", "300")), ({"QID": "Q4", "Label": "Paris"}, ("Q4", "Paris")),
        ({"id": "Q8", "name": "\u200bNew \u00a0York\n"}, ("Q8", "New York")),
        ({"id": "Q9", "name": "Beyonce\u0301"}, ("Q9", "Beyonc\u00e9")),
        ({"item": "http://www.wikidata.org/entity/Q5", "itemLabel": "Five"}, ("Q5", "Five")),
        ({"results": {"bindings": [{"item": {"type": "uri", "value": "http://www.wikidata.org/entity/Q5"},
                                    "itemLabel": {"value": "Five"}}]}}, ("Q5", "Five")),
    ],
    ids=str,
)  # fmt: skip
def test_ids_and_names_are_read_whatever_their_fields_are_called(
    tmp_path: Path, row: Row, pair: tuple[str, str]
) -> None:
    made, rejects = read(tmp_path, row, "kb.jsonl")
    assert (pairs(made), rejects) == ([pair], [])


def test_lines_that_are_no_json_are_told_by_their_number(tmp_path: Path) -> None:
    made, rejects = read(tmp_path, '{"id": "Q2", "name": "ours"}\n\n{"id"\n{"id": 3, "name": "b"}')
    assert [e["id"] for e in made] == ["Q2", "3"]
    assert "kb.json:3: line 3 is not JSON" in rejects[0]


def dump(*items: Row) -> str:
    return "[\n" + "".join(json.dumps(item) + ",\n" for item in items) + "]\n"


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_wikidata_s_dump_is_read(tmp_path: Path, packed: str) -> None:
    path, rejects = tmp_path / f"latest-all.json{packed}", list[str]()
    opener: Any = {"": open, ".gz": gzip.open, ".bz2": bz2.open}[packed]
    with opener(path, "wt") as file:
        file.write(dump(ADAMS, PROPERTY, BARE, {"type": "item", "id": "Q8", "labels": {}}))
    adams, bare = entity_files.read(str(path), rejects.append)
    assert {k: v for k, v in adams.items() if k not in ("image", "line")} == {
        "id": "Q42", "name": "Douglas Adams", "description": "English writer", "aliases": ["DNA"],
        "popularity": 2.0, "types": ["Q5"],
    }  # fmt: skip
    assert (bare["name"], bare["aliases"], bare["popularity"], bare["types"]) == ("Sept", [], 0.0, [])
    assert [r.partition(":")[2] for r in rejects] == [
        "3: P31 is a property of Wikidata, no item: left out", 
        "5: an entity needs a name: it has none (its fields are type, id, labels)",
    ]  # fmt: skip


def test_an_item_a_line_is_read_line_by_line(tmp_path: Path) -> None:
    """A broken one costs itself, where one JSON document would cost all behind it."""
    made, rejects = read(tmp_path, dump(ADAMS).replace("]\n", '{"id": "Q1", \n') + json.dumps(BARE) + "\n]")
    assert pairs(made) == [("Q42", "Douglas Adams"), ("Q7", "Sept")]
    assert "kb.json:3: the line is not JSON" in rejects[0]


TABLE = 'id,name,aliases,popularity\nQ1,Paris,"Lut\u00e8ce|Ville, la",7\n\nQ2,Boston,,\n,Nowhere,,\n'


@pytest.mark.parametrize("name", ["kb.csv", "kb.CSV", "kb.tsv", "kb.csv.gz", "kb.parquet"])
def test_entities_of_a_table_are_read_with_their_lists(tmp_path: Path, name: str) -> None:
    path, rejects = tmp_path / name, list[str]()
    if name == "kb.parquet":
        rows = [{"id": "Q1", "name": "Paris", "aliases": ["Lut\u00e8ce", "Ville, la"], "popularity": 7},
                {"id": "Q2", "name": "Boston"}, {"name": "Nowhere"}]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(TABLE.encode()))
    elif name == "kb.tsv":
        path.write_text(
            "\ufeffid\tname\taliases\tpopularity\n"
            "Q1\tParis\tLut\u00e8ce|Ville, la\t7\nQ2\tBoston\n\tNowhere\n"
        )
    else:
        path.write_text(TABLE)
    paris, boston = entity_files.read(str(path), rejects.append)
    assert pairs([paris, boston]) == [("Q1", "Paris"), ("Q2", "Boston")]
    assert (paris["aliases"], paris["popularity"], boston["aliases"]) == (
        ["Lut\u00e8ce", "Ville, la"],
        7.0,
        [],
    )
    assert len(rejects) == 1
    assert "an entity needs an id" in rejects[0]


def test_a_table_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kb\.csv: there is no column for an entity's name .*are id, city"):
        read(tmp_path, "id,city\nQ1,Paris\n", "kb.csv")


@pytest.mark.parametrize("name", ["kb.jsonl.gz", "kb.parquet"])
def test_a_file_that_ends_too_soon_makes_no_knowledge_base(tmp_path: Path, name: str) -> None:
    rows = [{"id": i, "name": f"entity {i * 7919}"} for i in range(5000)]
    path = tmp_path / name
    if name == "kb.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=f"{name} cannot be read after row|{name}: "):
        list(entity_files.read(str(path), print))


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    names = pa.array([b"Paris", b"\xff\xfe", b"Boston"]).view(pa.string())
    pq.write_table(pa.table({"id": [1, 2, 3], "name": names}), tmp_path / "kb.parquet")
    rejects = Rejects()
    made = list(entity_files.read(str(tmp_path / "kb.parquet"), rejects))
    assert pairs(made) == [("1", "Paris"), ("3", "Boston")]
    assert "kb.parquet:2: the row cannot be read" in rejects.first[0]
    (tmp_path / "kb.csv").write_bytes(b"id,name\n1,Paris\n2,\xff\xfe\n3,Boston\n")
    assert pairs(list(entity_files.read(str(tmp_path / "kb.csv"), rejects))) == pairs(made)
    assert "kb.csv:3: an entity needs a name: it is not UTF-8: '??'; save" in rejects.first[1]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_s_columns_may_be_separated_by_semicolons(tmp_path: Path, separator: str) -> None:
    rows = (["ID", "Name", "aliases"], ["Q1", "Boston", "Beantown|The Hub"], ["Q2", "Paris", ""])
    (tmp_path / "kb.csv").write_text("\n".join(map(separator.join, rows)))
    boston, paris = entity_files.read(str(tmp_path / "kb.csv"), print)
    assert (boston["aliases"], paris["name"]) == (["Beantown", "The Hub"], "Paris")


def test_a_folder_s_files_are_read_in_their_order(tmp_path: Path) -> None:
    read(tmp_path, {"id": 2, "name": "b"}, "b.jsonl")
    read(tmp_path, "id,name\n1,a\n", "a.csv")
    read(tmp_path, "no knowledge", "README.md")
    assert pairs(list(entity_files.read(str(tmp_path), print))) == [("1", "a"), ("2", "b")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder without a file that ends in"):
        list(entity_files.read(str(tmp_path / "empty"), print))


def test_of_several_with_one_id_the_first_is_kept_and_the_others_are_told(tmp_path: Path) -> None:
    rows = [{"id": 1, "name": "Paris"}, {"id": "Q2", "name": "Boston"}, {"id": "1", "name": "Paris Hilton"},
            {"id": "Q3", "name": "Boston"}, {"id": 1.0, "name": "Paris, Texas"}]  # fmt: skip
    read(tmp_path, "\n".join(map(json.dumps, rows)), "kb.jsonl")
    rejects = Rejects()
    made = entities.write(
        entity_files.read(str(tmp_path / "kb.jsonl"), rejects), tmp_path / "entities.arrow", rejects
    )
    assert list(made.pairs()) == [("1", "Paris"), ("Q2", "Boston"), ("Q3", "Boston")]
    assert rejects.count == 2
    assert rejects.first == [
        f"{line}: the id '1' of '{name}' is that of 'Paris' (line 1), which is kept; other names of an "
        "entity are its aliases"
        for line, name in ((3, "Paris Hilton"), (5, "Paris, Texas"))
    ]


def test_of_many_rejects_the_first_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    rejects = Rejects()
    read(tmp_path, "\n".join(["7"] * 25), "kb.jsonl")
    assert list(entity_files.read(str(tmp_path / "kb.jsonl"), rejects)) == []
    assert (rejects.count, len(rejects.first)) == (25, 10)
    assert rejects.lines("left out")[-1] == "... and 15 more left out"


def test_targets_become_names_of_the_knowledge_base(tmp_path: Path) -> None:
    rows = [{"id": "Q1", "name": "Apple Inc."}, {"id": "Q2", "name": "Apple"}]
    known = Targets(entities.write(rows, tmp_path / "entities.arrow"))
    assert known.name(None, "Q1") == "Apple Inc."  # gold with an id only
    assert known.name("Apple Computer", "Q1") == "Apple Inc."  # another spelling
    assert known.name("Apple", "Q1") == "Apple"  # a name of the knowledge base stays
    assert known.name("Pear", "Q9") == known.name("Pear", None) == "Pear"
    assert known.name(None, "NIL") is known.name(None, None) is None
    assert "Apple" in known
    assert "Pear" not in known


def test_targets_of_many_entities_take_few_bytes_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A build of millions of names once had them all in memory."""
    monkeypatch.setattr(entities, "_BATCH", 500)
    rows = ({"id": f"Q{n}", "name": f"The {n}th of many entities"} for n in range(20_000))
    known = Targets(entities.write(rows, tmp_path / "entities.arrow"))
    tracemalloc.start()
    assert known.name(None, "Q7") == "The 7th of many entities"
    assert "The 20000th of many entities" not in known
    assert tracemalloc.get_traced_memory()[1] < 100 * 20_000
    tracemalloc.stop()


KNOWN = [("Q1", "Boston"), ("Q2", "Mercury (planet)"), ("Q3", "Mercury_(element)"), ("Q4", "Q1 (group)"),
         ("Q5", "Q6"), ("Q6", "Gabon"), ("Q7", "Rediker's map"), ("QD", "Paris, Texas"),
         ("QD", "Paris, Ontario"), ("42", "Lagos")]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "target_id", "name"),
    [
        ("Q1", None, "Boston"),  # a target that is an id
        ("http://www.wikidata.org/entity/Q1", None, "Boston"),
        (None, "http://www.wikidata.org/entity/Q1", "Boston"),
        ("Mercury_(planet)", None, "Mercury (planet)"), ("Mercury (element)", None, "Mercury_(element)"),
        ("https://en.wikipedia.org/wiki/Mercury_(planet)", None, "Mercury (planet)"),
        (" Boston\u00a0", None, "Boston"), ("Rediker\u2019s map", None, "Rediker's map"),
        ("Paris, Texas", "QD", "Paris, Texas"), ("Paris, Ontario", "QD", "Paris, Ontario"),
        (None, "QD", "Paris, Texas"), ("Q9", None, "Q9"), (None, "42.0", "Lagos"), ("42", None, "Lagos"),
    ],
)  # fmt: skip
def test_a_target_is_a_name_or_an_id(target: str | None, target_id: str | None, name: str) -> None:
    known = Targets(KNOWN)
    assert known.name(target, target_id) == name
    assert known.doubts == 0


def test_a_target_that_is_a_name_and_another_s_id_is_the_name_and_a_doubt() -> None:
    known = Targets(KNOWN)
    assert known.name("Q6", None) == "Q6"
    assert known.doubts == 1
    assert known.name("Q6", "Q5") == "Q6"  # its id is told: no doubt
    assert known.doubts == 1
