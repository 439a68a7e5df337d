"""The ranking: candidates by names, examples and descriptions, and a network fitted on the examples."""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from files import write_links
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.cli import main
from gemel_ray.config import PAPER, Config, load
from gemel_ray.engine.work import Candidate
from gemel_ray.errors import Mistake
from gemel_ray.evaluation import gold_mentions
from gemel_ray.knowledge import bank as banks
from gemel_ray.knowledge import entities as entity_file
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.entities import EntityChanges
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.models.encoders import unit
from gemel_ray.ranking import descriptions, postings
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking.context import TrainingExample, learn_bend
from gemel_ray.ranking.evidence import Evidence
from gemel_ray.ranking.examples import NO_ENTITY, Examples
from gemel_ray.ranking.features import FEATURES, Question, bend
from gemel_ray.ranking.fitting import _trained, question_of
from gemel_ray.ranking.leaving_out import LeftOut
from gemel_ray.ranking.making import _texts, neighbours
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.postings import Postings
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import Ranking, open_collector
from gemel_ray.ranking.words import compared, content_words, folded, years
from gemel_ray.readers import documents
from gemel_ray.records import LINK
from gemel_ray.stages.answering import WithoutModel, joined, settled
from gemel_ray.stages.encoding import Encoding

TRADES = {
    "painter": "showed her new canvases and oil portraits in the gallery",
    "footballer": "scored twice before the match went to extra time",
    "astronomer": "discovered a comet with the telescope of the observatory",
    "senator": "voted against the bill in parliament after the debate",
    "cellist": "played the concerto with the orchestra that evening",
}
SURNAMES = (
    "Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine", "Grimaldi", "Hollander", "Jansson",
    "Kowalski", "Lindqvist", "Moreau", "Nakamura", "Oliveira", "Petrov", "Quiroga", "Rasmussen", "Santoro",
    "Takahashi", "Ulrich", "Vermeer", "Weissmann", "Yilmaz", "Zoellner", "Ivanova",
)  # fmt: skip
SETTINGS = ("bank.ranker=20", "retrieve.demonstrations=4")
FRONT = ["detect", "encode", "retrieve"]


def entities() -> list[dict[str, Any]]:
    return [
        {"id": f"Q{10 * s + t}", "name": f"{first} {surname}", "description": f"{trade} from Utrecht"}
        for s, surname in enumerate(SURNAMES)
        for t, (trade, first) in enumerate(zip(TRADES, ("Ana", "Ben", "Cleo", "Dirk", "Eva"), strict=True))
    ]


def examples() -> list[dict[str, Any]]:
    """Of all surnames but the last, which nobody is known by."""
    made = []
    for entity in entities():
        surname = entity["name"].split()[1]
        trade = entity["description"].split()[0]
        if surname != SURNAMES[-1]:
            text = f"{surname} {TRADES[trade]}."
            made.append({"id": entity["id"], "text": text, "mention": surname, "target": entity["name"]})
    # In real data, some targets are not in the knowledge base.
    return [*made, {"id": "other", "text": made[0]["text"], "mention": "new canvases", "target": "Canvas"}]


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: Any) -> Workspace:
    folder = tmp_path_factory.mktemp("ranked")
    kb, train = written(folder, "kb.jsonl", entities()), written(folder, "train.jsonl", examples())
    build(load(None, {}, SETTINGS), kb, [train], folder / "workspace", print)
    config = load(None, read_facts(folder / "workspace")["settings"], SETTINGS)
    return Workspace.open(folder / "workspace", config)


def configured(workspace: Workspace) -> Config:
    return load(None, workspace.facts["settings"], SETTINGS)


def likely(workspace: Workspace, folder: Path, **fields: Any) -> list[tuple[str, float]]:
    """Names and probabilities of what a mention may mean, as Retrieve hands them on."""
    source = written(folder, "asked.jsonl", [{"id": "1", **fields}])
    segment = linking_graph(configured(workspace), workspace).segment(FRONT, workspace)
    (row,) = asyncio.run(segment.run(next(documents(source)))).to_pylist()
    segment.close()
    names = [name for _, name in workspace.entities.of(row["likely"])]
    return list(zip(names, map(math.exp, row["chances"]), strict=True))


@settings(deadline=None)  # a disk may be busy
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)), max_size=50))
def test_an_index_gives_back_every_row_of_a_key_once(
    tmp_path_factory: Any, pairs: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("postings")
    postings.write(iter(pairs), folder, "x")
    expected: dict[int, set[int]] = defaultdict(set)
    for key, row in pairs:
        expected[key].add(row)
    index = Postings.open(folder, "x")
    assert {key: index.of(key).tolist() for key in expected} == {k: sorted(v) for k, v in expected.items()}
    assert index.of(next(k for k in range(99) if k not in expected)).tolist() == []


def test_names_are_found_by_words_form_initials_and_with_spelling_mistakes(workspace: Workspace) -> None:
    names = Names(workspace.ranking_folder)
    row = [e["name"] for e in entities()].index("Cleo Grimaldi")
    assert row in names.sharing_words(["grimaldi"]).rows
    assert names.with_name("cleo grimaldi").tolist() == [row]
    assert row in names.abbreviated("cg")
    assert names.similar("kleo grimmaldi", 3)[0] == row


def test_rows_of_names_come_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Over several batches of the file, in any order, also twice."""
    monkeypatch.setattr(name_files, "_BATCH", 4)
    entity_file.write(iter([{"id": str(i), "name": f"n{i}"} for i in range(10)]), tmp_path / "entities.arrow")
    name_files.write(entity_file.Entities.open(tmp_path / "entities.arrow"), tmp_path)
    found = Names(tmp_path).rows(np.array([9, 0, 4, 3, 9, 5]))
    assert [row["name"] for row in found] == ["n9", "n0", "n4", "n3", "n9", "n5"]
    assert Names(tmp_path).rows(np.empty(0, np.int64)) == []


def test_of_many_of_one_name_those_come_first_whose_other_names_stand_in_the_text(tmp_path: Path) -> None:
    """A first name that hundreds bear, and initials as they are really formed."""
    called = [f"William Nobody{n}" for n in range(200)]
    called += ["William Cohen", "Slovak Academy of Sciences", "Five-hundred-meter Aperture Telescope"]
    entity_file.write(({"id": str(i), "name": n} for i, n in enumerate(called)), tmp_path / "e.arrow")
    name_files.write(entity_file.Entities.open(tmp_path / "e.arrow"), tmp_path)
    names = Names(tmp_path)
    around = names.sharing_words(content_words("secretary of defense william s cohen"))
    assert names.sharing_words(["william"]).best(50, (around,))[0] == 200
    assert names.abbreviated("sas").tolist() == [201]
    assert names.abbreviated("fat").tolist() == [202]
    assert names.reordered("ssa").tolist() == [201]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A van of Cleo Grimaldi: they sue the force.", "Cleo Grimaldi"),  # named beside the mention
        ("The force has an astronomer.", "Cleo Hollander"),  # described so
        ("The force: new canvases and oil portraits.", "Ana Castellan"),  # an example of her tells that
    ],
)
def test_the_text_around_a_mention_brings_candidates(workspace: Workspace, text: str, found: str) -> None:
    collector = open_collector(workspace.ranking_folder, workspace.bank, workspace.entities)
    nothing = np.zeros(workspace.bank.mention_vectors.shape[1], np.float32)
    asked = Question("the force", text, nothing, None, np.empty(0, np.int64), np.empty(0, np.float32))
    rows = collector.evidence(asked).rows.tolist()
    assert found in [name for _, name in workspace.entities.of(rows)]


@pytest.mark.parametrize("trade", TRADES)
def test_the_text_decides_between_entities_of_one_surname_that_nobody_knows(
    workspace: Workspace, tmp_path: Path, trade: str
) -> None:
    """No example mentions them: description and names are all there is."""
    surname = SURNAMES[-1]
    text = f"The {trade} {surname} {TRADES[trade]}."
    found = likely(workspace, tmp_path, text=text, mention=surname)
    right = next(e["name"] for e in entities() if surname in e["name"] and trade in e["description"])
    assert found[0][0] == right
    assert sum(p for _, p in found) == pytest.approx(1, abs=0.2)  # ten of all candidates


@pytest.mark.parametrize(("text", "about", "expected"), [
    ("Smith in 1944.", "officer (1910-1990)", (1, 1, 1, 0.12)),
    ("Smith in 1944.", "lawyer (1833-1898)", (1, 1, 0, 1.42)),  # he was dead
    ("Smith in 1899.", "lawyer (1833-1898)", (1, 1, 1, 0.52)),  # of the dead is spoken
    ("Smith in 1944.", "singer, born in 1960", (1, 0, 0, 1.12)),
    ("Smith in 2010 and 1944.", "judge since 1920", (1, 1, 1, 0.32)),  # no end is known
    ("Smith, 11944 votes.", "lawyer (1833-1898)", (0, 0, 0, 0)),
    ("Smith in 1944.", "lawyer", (0, 0, 0, 0)),
])  # fmt: skip
def test_years_of_a_text_are_compared_with_those_of_a_description(
    text: str, about: str, expected: tuple[float, ...]
) -> None:
    assert compared(years(text), years(about)) == pytest.approx(expected)


def test_the_examples_of_a_document_say_nothing_of_it_when_it_is_linked(workspace: Workspace) -> None:
    """Neither by its mention nor by its text nor as neighbours. Of another text they do."""
    collector = open_collector(workspace.ranking_folder, workspace.bank, workspace.entities)
    known = collector.sources.examples
    (nearest, shares) = next(neighbours(workspace, configured(workspace), np.array([0])))
    assert 0 not in nearest.tolist()
    asked = replace(
        question_of(known, 0, nearest, shares), nearest=np.zeros(1, np.int64), votes=np.ones(1, np.float32)
    )
    wanted = [
        FEATURES.index(name) for name in ("examples", "votes", "examples at all", "words of an example")
    ]

    def told(text: str) -> list[float]:
        evidence = collector.evidence(replace(asked, text=text))
        at = evidence.rows.tolist().index(int(known.entity[0]))
        features: list[float] = evidence.features[at, wanted].tolist()
        return features

    assert told(workspace.bank.text(0)) == [0, 0, 0, 0]
    assert min(told(workspace.bank.text(0) + " Again.")) > 0


def test_one_text_under_two_pictures_is_two_documents(tmp_path: Path) -> None:
    """Of a caption that recurs only the examples of the same picture say nothing, also in another size; those
    without a picture cannot be told apart."""
    rows = [
        {"id": str(i), "text": t, "mention": "m", "target": "e", "tokens": [1], "image_row": picture}
        for i, (t, picture) in enumerate([("a flag", 0), ("a flag", 1), ("a flag", -1), ("a bird", 0)])
    ]
    looks, words = np.array([[3, 0.2], [1, 1]], np.float32), np.ones((4, 1), np.float32)
    bank = banks.write([pa.Table.from_pylist(rows, banks.SCHEMA)], [], looks, words, tmp_path)

    def same(*picture: float) -> list[int]:
        given = np.array(picture, np.float32) if picture else None
        return bank.same(["a flag"], ["m"], [given])[0]

    assert same(3, 0.2) == same(30.5, 2) == [0, 2]
    assert same(1, 1) == [1, 2]
    assert same(-1, 0) == [2]
    assert same() == [0, 1, 2]


def test_who_has_an_example_less_is_not_given_away_by_it() -> None:
    """Where everybody has three examples, the right one has two while one of its is judged, and so has
    everybody else; who has one keeps it."""
    entity = np.array([0, 0, 0, 1, 1, 1, 2, NO_ENTITY, NO_ENTITY])
    known = SimpleNamespace(
        entity=entity, bank=SimpleNamespace(examples=9), of=lambda e: np.flatnonzero(entity == e)
    )
    left_out, of_the_other = LeftOut(cast("Examples", known)), set()
    for turn, row in enumerate([0, 1, 2] * 5):
        hidden = left_out.of(turn, np.array([row], np.int32))
        hidden[row] = True
        assert np.bincount(entity[~hidden & (entity >= 0)]).tolist() == [2, 2, 1]
        of_the_other |= set(np.flatnonzero(hidden & (entity == 1)).tolist())
    assert of_the_other == {3, 4, 5}


def test_examples_of_many_entities_at_once_are_those_of_each(workspace: Workspace) -> None:
    """The same features as one entity after another, computed plainly; a hidden example counts for none."""
    collector = open_collector(workspace.ranking_folder, workspace.bank, workspace.entities)
    known = collector.sources.examples
    hidden = np.zeros(workspace.bank.examples, np.bool_)
    hidden[[1, 4]] = True
    asked = replace(question_of(known, 0, *(np.empty(0, t) for t in (np.int64, np.float32))), left_out=hidden)
    evidence = collector.evidence(replace(asked, text="Almeida showed her canvases and scored twice."))
    names = "examples at all", "likest text", "mean text", "has examples", "likest picture"
    found = evidence.features[:, [FEATURES.index(name) for name in names]]
    expected = []
    for row in evidence.rows.tolist():
        rows = [e for e in known.of(row).tolist() if not hidden[e]]
        near = [float(known.text_vectors[known.text[e]].astype(np.float32) @ asked.text_vector) for e in rows]
        expected.append(
            [math.log1p(len(rows)), max(near), sum(near) / len(near), 1, 0] if rows else [0.0] * 5
        )
    assert 1 < sum(map(any, expected)) < len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_name_tells_something_of_what_bears_it(workspace: Workspace) -> None:
    collector = open_collector(workspace.ranking_folder, workspace.bank, workspace.entities)
    at = [
        i for i in range(workspace.bank.examples, len(workspace.bank))
        if workspace.bank.mention(i) == entities()[1]["name"]
    ]  # fmt: skip
    vectors = unit(np.asarray(workspace.bank.mention_vectors[at[:1]], np.float32))
    near = collector.sources.examples.name_similarity([folded(e["name"]) for e in entities()[:3]], vectors)
    assert near[1, 0] == pytest.approx(1, abs=1e-3) and near[0, 0] < 0.99


def test_what_the_candidates_leave_is_the_chance_that_it_is_none_of_them(tmp_path: Path) -> None:
    """Examples whose entity was not found teach that."""
    dice = np.random.default_rng(0)
    judged = []
    for _ in range(400):
        features = dice.normal(size=(3, 2)).astype(np.float32)
        right = int(features[:, 0].argmax()) if features[:, 0].max() > 0.5 else -1
        judged.append(TrainingExample(Evidence(np.arange(3), features), right, features[0], features[0]))
    weights, answers = _trained(judged, 40)
    assert len(answers) == 120  # a part of its own for each network
    ranker = Ranker(weights, {}, ())
    Ranker(weights | {"bend": features}, {}, FEATURES).save(tmp_path / "ranker.safetensors")
    read = Ranker.load(tmp_path / "ranker.safetensors")
    assert read.scores(features).tolist() == pytest.approx(ranker.scores(features).tolist())
    sure, unsure = (
        float(np.exp(ranker.log_probabilities(np.array([[x, 0], [-1, 0], [-1, 0]], np.float32))).sum())
        for x in (2.0, -1.0)
    )
    assert unsure < 0.2
    assert 0.8 < sure <= 1


def test_a_new_entity_is_a_candidate_without_fitting_again(workspace: Workspace, tmp_path: Path) -> None:
    new = {"id": "Q999", "name": "Zora Ivanova", "description": "beekeeper from Utrecht"}
    assert (
        main(
            [
                "kb",
                "add",
                "--workspace",
                str(workspace.folder),
                "--entities",
                written(tmp_path, "n.jsonl", [new]),
            ]
        )
        == 0
    )
    opened = Workspace.open(workspace.folder, configured(workspace))
    text = "The beekeeper Ivanova sold honey from her hives."
    assert "Zora Ivanova" in dict(likely(opened, tmp_path, text=text, mention="Ivanova"))
    assert main(["kb", "rollback", "--workspace", str(workspace.folder)]) == 0


def test_the_texts_to_do_are_those_that_are_encoded(workspace: Workspace) -> None:
    """Of too many entities no description is."""
    solved, everybody = len({example["text"] for example in examples()}), len(entities())
    assert _texts(workspace, described=everybody) == solved + everybody
    assert _texts(workspace, described=everybody - 1) == solved


def test_an_index_that_versions_continue_is_that_of_their_entities(
    workspace: Workspace, tmp_path: Path
) -> None:
    new = {"id": "Q997", "name": "Wim Ivanova", "aliases": ["The Miller"]}
    for verb, *changed in (
        ("add", "--entities", written(tmp_path, "n.jsonl", [new])),
        ("remove", "Q3", "Q120", "Q997"),
        ("alias", "Q12", "Grand Comet Lady"),
        ("add", "--entities", written(tmp_path, "more.jsonl", [new, new | {"id": "Q996"}])),
        ("alias", "Q997", "Old Joe"),
    ):
        assert main(["kb", verb, "--workspace", str(workspace.folder), *changed]) == 0
    later = Workspace.open(workspace.folder, configured(workspace))
    name_files.write(later.entities, tmp_path / "at once")
    for file in (tmp_path / "at once").iterdir():
        assert file.read_bytes() == (later.ranking_folder / file.name).read_bytes(), file.name
    found = dict(likely(later, tmp_path, text="Grand Comet Lady.", mention="Grand Comet Lady"))
    assert entities()[7]["name"] in found
    assert main(["kb", "rollback", "--workspace", str(workspace.folder), workspace.knowledge]) == 0


def test_a_version_keeps_the_vectors_of_descriptions_and_encodes_what_the_former_did_not(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The ranker was fitted with them: a knowledge base that outgrows bank.descriptions keeps them. One that
    was too large has none until the setting is raised."""
    add = ["kb", "add", "--workspace", str(workspace.folder), "--entities"]
    new = [written(tmp_path, f"{i}.jsonl", [{"id": f"Q-{i}", "name": "Xi", "description": i}]) for i in "abc"]

    def vectors(found: Workspace) -> np.ndarray[Any, Any]:
        return descriptions.opened(found.ranking_folder / "about.npy", len(found.entities))

    def added(*options: str) -> Workspace:
        assert main([*add, new.pop(), *options]) == 0
        return Workspace.open(workspace.folder, configured(workspace))

    first = vectors(workspace)
    outgrown = added("--set", "bank.descriptions=1")
    assert np.array_equal(vectors(outgrown)[:-1], first)
    assert vectors(outgrown)[-1].any()
    (file := outgrown.ranking_folder / "about.npy").unlink()  # as a build above the limit leaves it
    descriptions.write_none(first.shape[1], file)
    assert not vectors(added("--set", "bank.descriptions=1")).any()
    later = vectors(added())
    assert np.array_equal(later[: len(first)], first)
    assert later[len(first) :].any(axis=1).all()
    assert main(["kb", "rollback", "--workspace", str(workspace.folder), workspace.knowledge]) == 0


def asked_about(surname: str) -> list[dict[str, Any]]:
    return [
        {"id": t, "text": f"The {t} {surname} {TRADES[t]}.", "mention": surname, "target": e["name"]}
        for t, e in zip(TRADES, [e for e in entities() if surname in e["name"]], strict=True)
    ]


def linked_alone(workspace: Path, folder: Path, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By all stages in this process; the last of them must be the one without a language model."""
    config = load(None, read_facts(workspace)["settings"], [*SETTINGS, "generate.ranking=1"])
    opened = Workspace.open(workspace, config)
    graph = linking_graph(config, opened)
    segment = graph.segment(graph.names, opened)
    assert isinstance(segment.steps[-1].work, WithoutModel)
    rows = asyncio.run(segment.run(next(documents(written(folder, "alone.jsonl", asked)))))
    segment.close()
    return rows.to_pylist()


def test_the_ranker_alone_links_without_a_language_model(workspace: Workspace, tmp_path: Path) -> None:
    rows = linked_alone(workspace.folder, tmp_path, asked_about(SURNAMES[-1]))
    assert [row["entity"] for row in rows] == [d["target"] for d in asked_about(SURNAMES[-1])]
    for row in rows:
        assert row["why"].startswith(f"ranker: {row['entity']} {row['probability']:.0%}, against ")
        assert f"{SURNAMES[-1]}: description +" in row["why"]  # of one surname, described otherwise
    assert all(row["status"] == "linked" and len(row["candidates"]) == 5 for row in rows)
    assert all(row["probability"] == pytest.approx(math.exp(row["score"])) for row in rows)
    assert {row["entity_id"] for row in rows} == {e["id"] for e in entities() if SURNAMES[-1] in e["name"]}


def test_a_threshold_for_a_wanted_precision_is_told_from_held_out_answers() -> None:
    """Of equal probabilities all are answered or none."""
    answers = [(0.9, True)] * 30 + [(0.6, True)] * 8 + [(0.6, False)] * 2 + [(0.2, False)] * 10
    ranker = Ranker({}, {"answers": answers}, ())
    assert [ranker.threshold(p) for p in (0.7, 0.95, 0.96)] == [0.2, 0.6, 0.9]
    with pytest.raises(Mistake, match=r"precision=0\.99 is more .* 50 held-out .* right in 90\.0%"):
        Ranker({}, {"answers": [(0.9, i > 4) for i in range(50)]}, ()).threshold(0.99)


def test_where_the_wanted_precision_cannot_be_had_the_answer_is_nil_or_the_reason_is_said(
    workspace: Workspace, tmp_path: Path
) -> None:
    source = written(tmp_path, "asked.jsonl", [{"id": "1", "text": "Nowhere Ltd.", "mention": "Ltd"}])
    wanted = replace(configured(workspace).generate, ranking=1.0, precision=0.5)
    config = replace(configured(workspace), generate=wanted)
    ranker = Ranker.load(workspace.ranking_folder / "ranker.safetensors")
    ranker.about["answers"] = [(0.99, True)] * 30 + [(0.99, False)] + [(0.98, False)] * 60
    kept = (workspace.ranking_folder / "ranker.safetensors").read_bytes()
    ranker.save(workspace.ranking_folder / "ranker.safetensors")
    try:
        segment = linking_graph(config, workspace).segment([*FRONT, "assemble", "generate"], workspace)
        (row,) = asyncio.run(segment.run(next(documents(source)))).to_pylist()
        with pytest.raises(Mistake, match="held-out examples"):
            settled(replace(wanted, precision=1.0), workspace)
    finally:
        (workspace.ranking_folder / "ranker.safetensors").write_bytes(kept)
    assert (row["status"], row["entity"]) == ("nil", None)


def test_evaluate_takes_the_ranker_as_the_linker_without_a_model(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links that are all missing but one, against a ranker that has them all."""
    gold = written(tmp_path, "gold.jsonl", asked_about(SURNAMES[-1]))
    (mention, *_) = gold_mentions([gold])
    row = dict.fromkeys(LINK.names) | {n: mention[n] for n in ("document_id", "mention_id", "mention")}
    write_links([row | {"status": "nil"}], tmp_path / "linked")
    run = {"configuration": {"retrieve": {"demonstrations": 4}}}
    (tmp_path / "linked" / "manifest.json").write_text(json.dumps(run))
    asked = ["evaluate", str(tmp_path / "linked"), "--gold", gold, "--workspace", str(workspace.folder)]
    texts, encode = list[str](), Encoding.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Encoding, "__call__", lambda *a: [texts.extend(a[1]["text"].to_pylist()), encode(*a)][1]
        )
        assert main([*asked, "--json"]) == 0
    assert len(texts) == len(set(texts)) > 0  # for both, with descriptions and without, encoded once
    said = capsys.readouterr()
    assert "without a language model: a ranker fitted on 120 examples" in said.err
    found = json.loads(said.out)
    assert found["accuracy"] == 0
    assert found["baseline"]["linker"] == "ranker"
    assert found["baseline"]["accuracy"]["value"] == 1
    assert found["baseline"]["all_candidates"]["value"] == 1
    assert found["baseline"]["undescribed"]["value"] < 1  # only descriptions tell who is meant
    assert list(found["breakdowns"]["described"]) == ["described"]


def test_texts_are_encoded_only_for_a_ranker_that_is_used(workspace: Workspace, tmp_path: Path) -> None:
    source = written(tmp_path, "asked.jsonl", [{"id": "1", "text": "A painter.", "mention": "painter"}])
    for asked in (0, 10):
        config = load(None, workspace.facts["settings"], [*SETTINGS, f"retrieve.ranking={asked}"])
        segment = linking_graph(config, workspace).segment(["detect", "encode"], workspace)
        (row,) = asyncio.run(segment.run(next(documents(source)))).to_pylist()
        segment.close()
        assert (row["text_vector"] is not None) == bool(asked)


def test_the_paper_has_no_ranker() -> None:
    paper = load(None, {}, PAPER)
    assert (paper.bank.ranker, paper.retrieve.ranking, paper.generate.ranking) == (0, 0, 0.0)


def test_a_file_that_is_not_a_ranker_is_named(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "ranker.safetensors"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"ranker\.safetensors is not a ranker"):
        Ranker.load(file)
    with pytest.raises(ValueError, match="is not a ranker"):
        Ranking.open(tmp_path, workspace.bank, workspace.entities)


def test_an_index_that_an_earlier_version_did_not_write_is_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="has no index of documents: build the workspace again"):
        Postings.open(tmp_path, "documents")


def test_a_ranker_of_an_earlier_version_is_named_before_a_workspace_grows(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace.ranking_folder / "ranker.safetensors"
    kept = file.read_bytes()
    replace(Ranker.load(file), features=("examples", "prior")).save(file)
    new = written(tmp_path, "n.jsonl", [{"id": "Q998", "name": "Yves Ivanova"}])
    try:
        assert main(["kb", "add", "--workspace", str(workspace.folder), "--entities", new]) != 0
    finally:
        file.write_bytes(kept)
    assert (
        "ranker.safetensors was fitted on other features: build the workspace again"
        in capsys.readouterr().err
    )


def judged_by_texts(about: np.ndarray[Any, Any], count: int, seed: int) -> list[TrainingExample]:
    """Examples whose texts tell the entity in half of the numbers, and in the others, loudly, nothing."""
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows, right = dice.choice(len(about), 10, replace=False), int(dice.integers(10))
        text = about[rows[right]].astype(np.float32)
        text[8:] = dice.normal(0, 1.5, 8)
        features = np.zeros((10, len(FEATURES)), np.float32)
        found.append(TrainingExample(Evidence(rows, features), right, text, text))
    return found


def test_texts_are_bent_towards_the_descriptions_of_who_is_meant() -> None:
    about = np.random.default_rng(0).normal(0, 1, (200, 16)).astype(np.float16)
    taught, asked = judged_by_texts(about, 2_000, 1), judged_by_texts(about, 300, 2)

    def right(matrix: np.ndarray[Any, Any]) -> float:
        best = [(about[j.evidence.rows] @ bend(j.text, matrix)).argmax() == j.right for j in asked]
        return float(np.mean(best))

    matrix = learn_bend(about, taught)
    assert right(matrix) > right(np.zeros((16, 16), np.float32)) + 0.05
    assert np.array_equal(matrix, learn_bend(about, taught))
    assert not learn_bend(about, taught[:10]).any()  # too few teach nothing


def test_another_version_s_descriptions_are_not_encoded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(descriptions, "_AT_ONCE", 7)
    encoded: list[str] = []

    def encode(texts: list[str]) -> np.ndarray[Any, Any]:
        encoded.extend(texts)
        return np.array([[len(text), text.count("e")] for text in texts], np.float32)

    def write(name: str, rows: list[dict[str, Any]], *former: Any) -> np.ndarray[Any, Any]:
        made, file = entity_file.write(rows, tmp_path / f"{name}.arrow"), tmp_path / f"{name}.npy"
        descriptions.write(made, encode, 2, file, *former)
        return descriptions.opened(file, len(made))

    rows = entities()
    one = write("one", rows)
    encoded.clear()
    keeper = rows[0] | {"id": "Q-1", "description": "beekeeper"}
    later = [*rows[1:9], *rows[10:], keeper, {"id": "Q-2", "name": "Nobody"}, keeper | {"id": "Q-3"}]
    vectors = write("two", later, (one, EntityChanges(np.array([0, 9]), np.array([20]))))
    assert encoded == [f"{keeper['name']}: beekeeper"]
    texts = [f"{r['name']}: {r['description']}" if "description" in r else "" for r in later]
    assert vectors.tolist() == [[len(text), text.count("e")] for text in texts]


CANDIDATES = st.dictionaries(st.integers(0, 20), st.floats(-30, 0), min_size=1, max_size=8)


@given(CANDIDATES, CANDIDATES, st.floats(0, 1))
def test_joined_names_are_a_distribution_over_what_either_knows(
    said: dict[int, float], chances: dict[int, float], weight: float
) -> None:
    found = [Candidate(leaf, p, p) for leaf, p in said.items()]
    both = joined(found, chances, weight, 100)
    assert {c.leaf for c in both} == said.keys() | chances.keys()
    assert sum(math.exp(c.score) for c in both) == pytest.approx(1)
    assert [c.score for c in both] == sorted((c.score for c in both), reverse=True)


@given(CANDIDATES, CANDIDATES)
def test_a_weight_of_nothing_keeps_the_language_model_s_best_and_a_weight_of_one_the_ranker_s(
    said: dict[int, float], chances: dict[int, float]
) -> None:
    found = [Candidate(leaf, p, p) for leaf, p in said.items()]
    assert said[joined(found, chances, 0.0, 1)[0].leaf] == max(said.values())
    assert chances[joined(found, chances, 1.0, 1)[0].leaf] == max(chances.values())


NAMESAKES = [
    {"id": "Q901", "name": "Petra Novak", "description": "cellist from Brno"},
    {"id": "Q902", "name": "Petra Novak", "description": "senator from Brno"},
]


@pytest.mark.parametrize(("trade", "identity"), [("cellist", "Q901"), ("senator", "Q902")])
def test_two_of_one_name_are_told_apart_by_id(
    workspace: Workspace, tmp_path: Path, trade: str, identity: str
) -> None:
    source = written(tmp_path, "namesakes.jsonl", NAMESAKES)
    assert main(["kb", "add", "--workspace", str(workspace.folder), "--entities", source]) == 0
    try:
        text = f"The {trade} Novak {TRADES[trade]}."
        (row,) = linked_alone(workspace.folder, tmp_path, [{"id": "1", "text": text, "mention": "Novak"}])
    finally:
        assert main(["kb", "rollback", "--workspace", str(workspace.folder)]) == 0
    found = [c["entity_id"] for c in row["candidates"] if c["entity"] == "Petra Novak"]
    assert found == sorted(("Q901", "Q902"), key=lambda one: one != identity)
