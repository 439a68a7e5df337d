"""The knowledge graph: triples read, kept, and what they say of a mention's candidates."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.cli import main
from gemel_ray.config import load
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge import triple_files
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.entities import Rejects
from gemel_ray.knowledge.hashing import key
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking import triples as triple_arrays
from gemel_ray.ranking.connections import CONNECTION_FEATURES, Connections, TextNames
from gemel_ray.ranking.evidence import Collector
from gemel_ray.ranking.features import GRAPH, GROUPS, RETRIEVAL, available, groups_of
from gemel_ray.ranking.fitting import fitted, prepared
from gemel_ray.ranking.making import neighbours, prepare, refit
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import open_collector
from gemel_ray.ranking.triples import Triple, Triples
from gemel_ray.readers import documents

EXPECTED = [Triple("Q1", "member of", "Q2", "The Band"), Triple("Q2", "genre", None, "punk rock")]
FORMS = {
    "ours.jsonl": '{"head": "Q1", "relation": "member of", "tail": "Q2", "tail_label": "The Band"}\n'
    '{"head": "Q2", "relation": "genre", "tail_label": "punk rock"}\n',
    "short.jsonl": '{"h": "Q1", "p": "P463", "pl": "member of", "t": "Q2", "tl": "The Band", "s": "x"}\n'
    '{"h": "Q2", "p": "P136", "pl": "genre", "t": null, "tl": "punk rock"}\n',
    "header.tsv": "head\trelation\ttail\ttail_label\nQ1\tmember of\tQ2\tThe Band\nQ2\tgenre\t\tpunk rock\n",
    "header.csv": 'h,p,t,tl\nQ1,member of,Q2,"The Band"\nQ2,genre,,punk rock\n',
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_triples_are_read_in_every_form(tmp_path: Path, name: str, packed: bool) -> None:
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(FORMS[name].encode()) if packed else FORMS[name].encode())
    rejects = Rejects()
    assert list(triple_files.read(str(file), rejects)) == EXPECTED
    assert rejects.count == 0


def test_three_columns_without_a_header_are_head_relation_and_tail(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('Q1\tmember of\tQ2\nQ1\tsaid\ta "word\n')
    found = list(triple_files.read(str(tmp_path / "t.tsv"), Rejects()))
    assert found == [Triple("Q1", "member of", "Q2", None), Triple("Q1", "said", 'a "word', None)]


@pytest.mark.parametrize(("line", "why"), [
    ('{"relation": "genre", "tail": "Q3"}', "needs a head"),
    ('{"head": "Q1", "tail": "Q3"}', "needs a relation"),
    ('{"head": "Q1", "relation": "genre"}', "needs a tail"),
    ('{"head": "Q1", "relation"', "is not JSON"),
    ('"Q1 genre Q3"', "an object with head, relation and tail"),
])  # fmt: skip
def test_what_is_no_triple_costs_its_line_only(tmp_path: Path, line: str, why: str) -> None:
    file, rejects = tmp_path / "t.jsonl", Rejects()
    file.write_text(f"{FORMS['ours.jsonl']}{line}\n{FORMS['ours.jsonl']}")
    assert list(triple_files.read(str(file), rejects)) == EXPECTED * 2
    assert rejects.count == 1
    assert why in rejects.first[0]
    assert "t.jsonl:3: " in rejects.first[0]


def test_a_file_that_is_cut_short_or_empty_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(FORMS["ours.jsonl"].encode() * 999)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz"):
        list(triple_files.read(str(tmp_path / "cut.jsonl.gz"), Rejects()))
    (tmp_path / "none.tsv").write_text("")
    entities = entity_file.write([], tmp_path / "entities.arrow")
    with pytest.raises(ValueError, match=r"none\.tsv holds no triple"):
        triple_files.index(str(tmp_path / "none.tsv"), entities, tmp_path / "graph", Rejects())


NAMED = st.sampled_from(["Q1", "Q2", "Q3", "Q4"])


@settings(deadline=None)  # files are written
@given(st.lists(st.tuples(NAMED, st.sampled_from("ab"), NAMED), min_size=1, max_size=30))
def test_arrays_give_back_every_fact_once(tmp_path_factory: Any, given: list[tuple[str, str, str]]) -> None:
    folder = tmp_path_factory.mktemp("triples")
    count = triple_arrays.write((Triple(*one, None) for one in given), [("Q2", "Two")], folder)
    assert count == len(set(given))
    opened = Triples(folder)
    expected: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for head, relation, tail in given:
        expected[head].add((relation, "Two" if tail == "Q2" else tail))
    labels, relations = opened.labels(), opened.relations()
    for head in ("Q1", "Q2", "Q3", "Q4"):
        facts = opened.facts(key(head))
        found = [(relations[opened.relation[f]], labels[opened.node[f]]) for f in facts]
        assert sorted(found) == sorted(expected[head])
    heads = {labels[n]: d for n, d in enumerate(opened.degree.tolist())}
    for label, number in heads.items():
        assert number == sum(any(t == label for _, t in facts) for facts in expected.values())


@settings(deadline=None)
@given(st.lists(st.tuples(NAMED, st.sampled_from("ab"), NAMED), min_size=2, max_size=30), st.integers(1, 29))
def test_facts_that_are_added_are_as_if_given_at_once(
    tmp_path_factory: Any, given: list[tuple[str, str, str]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("added")
    facts, names = [Triple(*one, None) for one in given], [("Q2", "Two")]
    triple_arrays.write(facts, names, folder / "whole")
    triple_arrays.write(facts[:cut], [], folder / "first")
    triple_arrays.write(facts[cut:], names, folder / "both", Triples(folder / "first"))
    whole, both, first = (Triples(folder / name) for name in ("whole", "both", "first"))

    def told(graph: Triples) -> list[Any]:
        labels, relations = graph.labels(), graph.relations()
        degrees = sorted(zip(labels, graph.degree.tolist(), graph.form.tolist(), strict=True))
        facts = [[(relations[graph.relation[f]], labels[graph.node[f]]) for f in graph.facts(key(head))]
                 for head in ("Q1", "Q2", "Q3", "Q4")]  # fmt: skip
        return [degrees, *map(sorted, facts)]

    assert told(both) == told(whole)
    assert both.identity[: len(first.identity)].tolist() == first.identity.tolist()


def test_a_name_in_a_text_begins_with_a_capital_and_the_mention_is_none_of_them() -> None:
    said = TextNames.of("The singer Ann Lee with Bob of Acme", "ann lee")
    assert "ann lee" not in said.forms
    assert {"bob", "acme", "bob of acme"} <= set(said.names)
    assert "singer" in said.forms
    assert "singer" not in said.names


ENTITIES = [
    {"id": "Q1", "name": "Ann Lee"},
    {"id": "Q2", "name": "Anton Lee"},
    {"id": "Q3", "name": "Bob Stone"},
    {"id": "Q4", "name": "Acme Choir"},
    {"id": "Q5", "name": "Cleo Lee"},
]
FACTS = [
    Triple("Q1", "occupation", None, "stunt pilot"),
    Triple("Q1", "award", "Q77", "Golden Wing"),
    Triple("Q3", "spouse", "Q2", None),
    Triple("Q5", "member of", "Q4", None),
    Triple("Q2", "occupation", None, "judge"),
    Triple("Q3", "award", "Q78", "Silver Cup"),
    Triple("Q5", "award", "Q78", "Silver Cup"),
]


@pytest.fixture(scope="module")
def connections(tmp_path_factory: Any) -> Connections:
    folder = tmp_path_factory.mktemp("connections")
    rows = [{"description": None, "aliases": None, **e} for e in ENTITIES]
    entities = entity_file.write(rows, folder / "entities.arrow")
    name_files.write(entities, folder)
    triple_arrays.write(FACTS, entities.pairs(), folder)
    identity = np.array([key(i) for i, _ in entities.pairs()], np.uint64)
    return Connections(Triples(folder), Names(folder), identity)


@pytest.mark.parametrize(("feature", "text", "right"), [
    ("facts told", "Lee, a stunt pilot, before take-off", "Q1"),
    ("rarest fact told", "Lee, a stunt pilot, before take-off", "Q1"),
    ("facts' words", "Lee among other pilots", "Q1"),
    ("another's fact", "Lee and Bob Stone at home", "Q2"),
    ("fact of another", "Lee in front of the Acme Choir", "Q5"),
    ("facts shared", "Lee with Bob Stone and the cup", "Q5"),
])  # fmt: skip
def test_the_graph_tells_candidates_apart(
    connections: Connections, feature: str, text: str, right: str
) -> None:
    rows = np.array([0, 1, 4])
    values = connections(rows, "lee", text)[:, CONNECTION_FEATURES.index(feature)]
    assert ENTITIES[rows[values.argmax()]]["id"] == right
    assert sorted(values)[-2] < values.max()


def test_without_facts_and_without_words_nothing_is_said(connections: Connections) -> None:
    assert not connections(np.array([3]), "acme choir", "Acme Choir").any()


TRADES = ("oil painter", "goalkeeper", "comet hunter", "senator", "cellist")
FIRST = ("Ana", "Ben", "Cleo", "Dirk", "Eva")
SURNAMES = ("Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine", "Grimaldi", "Ivanova")
SETTINGS = ("bank.ranker=20", "retrieve.demonstrations=4", "generate.ranking=1")
PEOPLE = [(f"Q{s}{t}", f"{first} {surname}", surname, trade)
          for s, surname in enumerate(SURNAMES)
          for t, (first, trade) in enumerate(zip(FIRST, TRADES, strict=True))]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: Any) -> Path:
    """Nobody is described: what a person does is a triple, and all but the last surname have examples."""
    folder = tmp_path_factory.mktemp("graph")
    kb = lines(folder / "kb.jsonl", [{"id": i, "name": name} for i, name, _, _ in PEOPLE])
    triples = folder / "triples.tsv"
    triples.write_text("".join(f"{i}\toccupation\t{trade}\n" for i, _, _, trade in PEOPLE))
    train = lines(folder / "train.jsonl", [
        {"text": f"{surname}, the {trade}, on Sunday.", "mention": surname, "target": name}
        for _, name, surname, trade in PEOPLE if surname != SURNAMES[-1]
    ])  # fmt: skip
    said: list[str] = []
    build(load(None, {}, SETTINGS), kb, [train], folder / "ws", said.append, triples=str(triples))
    assert any(line.startswith("40 triples") for line in said)
    return folder / "ws"


def linked(workspace: Path, file: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Ids that the ranker alone gives for the mentions of these documents."""
    config = load(None, read_facts(workspace)["settings"], SETTINGS)
    opened = Workspace.open(workspace, config)
    graph = linking_graph(config, opened)
    segment = graph.segment(graph.names, opened)
    found = asyncio.run(segment.run(next(documents(lines(file, rows))))).to_pylist()
    segment.close()
    assert [row["error"] for row in found] == [None] * len(found)
    return [row["entity_id"] for row in found]


UNKNOWN = [person for person in PEOPLE if person[2] == SURNAMES[-1]]
ASKED = [
    {"text": f"{surname}, the {trade}, at noon.", "mention": surname} for _, _, surname, trade in UNKNOWN
]


def test_a_text_that_tells_a_fact_is_linked_to_whom_it_is_of(workspace: Path, tmp_path: Path) -> None:
    assert linked(workspace, tmp_path / "in.jsonl", ASKED) == [identity for identity, *_ in UNKNOWN]


def test_the_graph_stays_when_entities_come_and_go(workspace: Path, tmp_path: Path) -> None:
    """Rows move, ids do not."""
    assert main(["kb", "remove", "--workspace", str(workspace), PEOPLE[0][0]]) == 0
    try:
        asked = [identity for identity, *_ in UNKNOWN]
        assert linked(workspace, tmp_path / "in.jsonl", ASKED) == asked
    finally:
        assert main(["kb", "rollback", "--workspace", str(workspace)]) == 0


def test_a_fact_of_a_new_entity_counts_at_once(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sixth of the surname, a dancer: before the triple is given nothing tells that she is meant."""
    new = lines(tmp_path / "new.jsonl", [{"id": "Q999", "name": f"Fay {SURNAMES[-1]}"}])
    (tmp_path / "facts.tsv").write_text("Q999\toccupation\tballet dancer\n")
    asked = [{"text": f"{SURNAMES[-1]}, the ballet dancer, at noon.", "mention": SURNAMES[-1]}, *ASKED]
    right = ["Q999", *(identity for identity, *_ in UNKNOWN)]
    add = ["kb", "add", "--workspace", str(workspace)]
    assert main([*add, "--entities", new]) == 0
    try:
        assert linked(workspace, tmp_path / "in.jsonl", asked)[0] != "Q999"
        assert main([*add, "--triples", str(tmp_path / "facts.tsv")]) == 0
        try:
            assert "1 triples added: Q999 occupation" in capsys.readouterr().err
            assert linked(workspace, tmp_path / "in.jsonl", asked) == right
        finally:
            assert main(["kb", "rollback", "--workspace", str(workspace)]) == 0
    finally:
        assert main(["kb", "rollback", "--workspace", str(workspace)]) == 0
    (tmp_path / "facts.tsv").write_text("Q999\toccupation\t\n")
    assert main([*add, "--triples", str(tmp_path / "facts.tsv")]) == 2
    assert "needs a tail" in capsys.readouterr().err


def test_facts_for_a_workspace_without_a_graph_are_refused(
    workspace_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "facts.tsv").write_text("Q1\toccupation\tdancer\n")
    asked = ["kb", "add", "--workspace", str(workspace_folder), "--triples", str(tmp_path / "facts.tsv")]
    assert main(asked) == 2
    assert "was built without --triples" in capsys.readouterr().err


def test_a_table_decides_by_what_stands_beside_the_cell(workspace: Path, tmp_path: Path) -> None:
    """With the trades of the next row, it is the next person."""

    def asked(turned: int) -> list[str]:
        trades = TRADES[turned:] + TRADES[:turned]
        table = [{"name": surname, "trade": t} for (_, _, surname, _), t in zip(UNKNOWN, trades, strict=True)]
        rows = [{"table": [row], "mentions": [{"row": 0, "column": "name"}]} for row in table]
        return linked(workspace, tmp_path / "in.jsonl", rows)

    right = [identity for identity, *_ in UNKNOWN]
    assert asked(0) == right
    assert asked(1) == right[1:] + right[:1]


def test_a_ranker_that_is_fitted_without_the_graph_does_not_see_it(workspace: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(workspace, without)
    config = load(None, read_facts(without)["settings"], SETTINGS)
    opened = Workspace.open(without, config)
    refit(opened, config, prepare(opened, config), [GRAPH])
    file = without / "ranking" / "ranker.safetensors"
    seen = [group.name for group in groups_of(Ranker.load(file).features)]
    assert seen == [group.name for group in GROUPS if group.name not in (GRAPH, RETRIEVAL)]
    sources = open_collector(opened.ranking_folder, opened.bank, opened.entities).sources
    alone = Collector(sources, available(sources, {GRAPH, RETRIEVAL}))
    never_seen = fitted(prepared(alone, lambda rows: neighbours(opened, config, rows)))
    assert never_seen is not None
    for name, weights in Ranker.load(file).weights.items():
        assert np.array_equal(weights, never_seen.weights[name]), name
    assert linked(without, tmp_path / "in.jsonl", ASKED) != [identity for identity, *_ in UNKNOWN]
