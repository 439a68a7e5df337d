"""Evaluation: hand-made links with known answers; each figure by hand, by brute force, or by scipy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import SHARED, write_links
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from gemel_ray.cli import main
from gemel_ray.evaluation import Judged, Known, compare, evaluate, gold_mentions, known
from gemel_ray.evaluation.baseline import Baseline
from gemel_ray.evaluation.breakdowns import breakdowns
from gemel_ray.evaluation.calibration import calibration
from gemel_ray.evaluation.figures import popularity
from gemel_ray.evaluation.judged import dataset, links_of
from gemel_ray.evaluation.known import Named, named_in, named_in_workspace
from gemel_ray.evaluation.resampling import Resampling
from gemel_ray.knowledge import entities
from gemel_ray.knowledge.entities import Targets
from gemel_ray.records import LINK

Answer = tuple[str, float | None, Sequence[str]]  # status, probability, candidates


def write_gold(path: Path, documents: Sequence[Sequence[dict[str, Any]]]) -> str:
    """One document for each list of mentions; every mention is one letter of its text."""
    lines = []
    for number, mentions in enumerate(documents):
        text = f"{number} " + " ".join("x" * len(mentions))
        placed = [
            {"start": text.index("x") + 2 * i, "end": text.index("x") + 2 * i + 1}
            for i in range(len(mentions))
        ]
        rows = [place | mention for place, mention in zip(placed, mentions, strict=True)]
        lines.append(json.dumps({"id": f"d{number}", "text": text, "mentions": rows}))
    path.write_text("\n".join(lines))
    return str(path)


def write_answers(output: Path, gold: str, answers: Sequence[Answer | None], fingerprint: str = "f") -> Path:
    """The answers to the gold mentions in their order; None: not in the output."""
    rows = []
    for mention, answer in zip(gold_mentions([gold]), answers, strict=True):
        if answer is None:
            continue
        status, probability, names = answer
        row = dict.fromkeys(LINK.names) | {n: mention[n] for n in ("document_id", "mention_id", "mention")}
        row |= {"status": status, "entity": names[0] if status == "linked" else None}
        row |= {"probability": probability, "fingerprint": fingerprint}
        row["candidates"] = [{"entity": n, "entity_id": n, "score": -float(i)} for i, n in enumerate(names)]
        rows.append(row)
    write_links(rows, output)
    return output


def judged(
    target: str,
    answer: str | None,
    *,
    mention: str = "m",
    document: str = "d",
    probability: float | None = None,
) -> Judged:
    gold = {
        "document_id": document,
        "mention_id": "0-1",
        "mention": mention,
        "text": document,
        "picture_id": "",
        "target": target,
    }
    link = {"status": "linked" if answer else "nil", "entity": answer, "probability": probability}
    ranked = (answer,) if answer else ()
    return Judged(gold | {"dataset": "s", "target_id": None}, link | {"ranked": ranked, "fingerprint": "f"})


GOLD: list[list[dict[str, Any]]] = [
    [{"target": "A"}, {"target": "B", "type": "place"}],
    [{"target": "C", "type": "place"}, {"target_id": "NIL"}],
    [{"target": "D", "type": "person"}, {}],
    [{"target": "E"}, {"target_id": "NIL"}],
]
ANSWERS: list[Answer | None] = [
    ("linked", 0.9, ["A", "X"]),
    ("linked", 0.6, ["X", "X", "B"]),  # one name of two entities: B is second
    ("nil", 0.2, ["Y", "Z", "X", "C"]),
    ("nil", 0.1, ["X"]),
    ("error", None, []),
    ("linked", 0.5, ["X"]),
    None,
    ("linked", 0.7, ["X"]),
]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, str]:
    gold = write_gold(tmp_path / "cities-dev.jsonl", GOLD)
    return write_answers(tmp_path / "linked", gold, ANSWERS), gold


def values(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figure["value"] for name, figure in figures.items()}


def test_the_headline_is_what_a_count_by_hand_gives(run: tuple[Path, str]) -> None:
    figures = evaluate(run[0], [run[1]]).figures()
    assert figures["mentions"] == 5
    assert figures["statuses"] == {"linked": 2, "nil": 1, "error": 1, "missing": 1}
    assert (figures["without_target"], figures["gold_nil"], figures["documents"]) == (3, 2, 4)
    assert values(figures["headline"]) == {
        "accuracy": 0.2,
        "top_1": 0.2,
        "top_3": 0.4,
        "top_5": 0.6,
        "among_candidates": 0.6,
        "mrr": round((1 + 1 / 2 + 1 / 4) / 5, 4),
        "errors": 0.2,
        "nils": 0.2,
        "missing": 0.2,
        "accuracy_with_nil": round(2 / 7, 4),  # A, and one gold NIL answered nil
        "link_precision": round(1 / 3, 4),
        "nil_precision": 0.5,
        "nil_recall": 0.5,
    }
    assert figures["headline"]["nil_recall"]["mentions"] == 2
    assert (figures["accuracy"], figures["among_candidates"]) == (0.2, 0.6)
    assert figures["interval_95"] == figures["headline"]["accuracy"]["interval_95"]


def test_the_figures_are_json_whatever_is_missing(run: tuple[Path, str], tmp_path: Path) -> None:
    json.dumps(evaluate(run[0], [run[1]]).figures(), allow_nan=False)
    gold = write_gold(tmp_path / "one.jsonl", [[{"target": "A"}]])
    found = evaluate(write_answers(tmp_path / "one", gold, [("error", None, [])]), [gold])
    assert found.figures()["interval_95"] == [0.0, 0.7935]  # Wilson's of one document
    assert found.figures()["calibration"] is None
    json.dumps(found.figures(), allow_nan=False)
    assert "accuracy" in found.table()


def test_nil_in_the_official_form_counts_as_nil(tmp_path: Path) -> None:
    rows = [
        {"text": f"x{i}", "mention": "x", "target": "A", "golden": g} for i, g in enumerate(["Q1", "NIL"])
    ]
    gold = tmp_path / "dev.json"
    gold.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate(
        write_answers(tmp_path / "run", str(gold), [("linked", 1, ["A"]), ("nil", 0, ["A"])]), [str(gold)]
    )
    assert values(found.figures()["headline"])["nil_recall"] == 1.0
    assert [j.gold["dataset"] for j in found.judged] == [tmp_path.name]


def test_gold_that_tells_only_an_id_is_named_by_the_knowledge_base(tmp_path: Path) -> None:
    gold = write_gold(
        tmp_path / "dev.jsonl", [[{"target_id": "Q1"}], [{"target_id": "Q2"}], [{"target_id": "NIL"}]]
    )
    answers: list[Answer | None] = [("linked", 0.9, ["A"]), ("linked", 0.9, ["A"]), ("nil", 0.1, ["A"])]
    output = write_answers(tmp_path / "out", gold, answers)
    found = evaluate(output, [gold], targets=Targets([("Q1", "A"), ("Q2", "B")]))
    assert [(j.gold["target"], j.right) for j in found.judged] == [("A", True), ("B", False)]
    assert len(found.nil) == 1
    with pytest.raises(ValueError, match="--entities"):
        evaluate(output, [gold])


SPELLED = ["New\u00a0York", "Paris Hilton ", "Beyonce\u0301", "Mercury_(planet)", "New\nYork"]
NAMED = ["New York", "Paris Hilton", "Beyonc\u00e9", "Mercury (planet)", "New York"]


def test_white_space_and_unicode_forms_of_gold_are_no_difference(tmp_path: Path) -> None:
    """With a knowledge base and without one."""
    gold = write_gold(tmp_path / "dev.jsonl", [[{"target": target}] for target in SPELLED])
    output = write_answers(tmp_path / "out", gold, [("linked", 0.9, [name]) for name in NAMED])
    for targets in (None, Targets((name, name) for name in NAMED)):
        assert evaluate(output, [gold], targets=targets).accuracy == 1.0


def test_mentions_that_training_spells_with_other_white_space_are_the_same(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    lines = [
        {"text": text, "mentions": [{"start": 0, "end": 9, "target": "A"}]} for text in ("Big\u00a0Apple",)
    ]
    train.write_text("\n".join(map(json.dumps, lines)))
    assert Baseline(known([str(train)])).answer("Big Apple") == "A"


def finished(output: Path, gold: str, workspace: Path) -> None:
    used = {"path": str(workspace), "knowledge": "0"}
    (output / "manifest.json").write_text(json.dumps({"inputs": [gold], "workspace": used}))


def test_without_gold_the_job_s_own_input_is_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Targets that are ids are known by the workspace that the job used, while it is there."""
    gold = write_gold(tmp_path / "dev.jsonl", [[{"target": "A"}], [{"target": "Q2"}], [{"target_id": "Q2"}]])
    output = write_answers(tmp_path / "out", gold, [("linked", 0.9, [name]) for name in "ABB"])
    assert main(["evaluate", str(output)]) == 2
    assert "has no manifest.json that names the job's input: give --gold FILE" in capsys.readouterr().err
    workspace = tmp_path / "ws"
    workspace.mkdir()
    rows = [{"id": "Q1", "name": "A"}, {"id": "Q2", "name": "B"}]
    entities.write(rows, workspace / "entities.arrow")
    finished(output, gold, workspace)
    assert main(["evaluate", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mentions"], found["accuracy"]) == (3, 1.0)
    finished(output, str(tmp_path / "gone.jsonl"), workspace)
    assert main(["evaluate", str(output)]) == 2
    assert "the job's input is not there: there is no" in capsys.readouterr().err
    finished(output, write_gold(tmp_path / "bare.jsonl", [[{}]]), workspace)
    assert main(["evaluate", str(output)]) == 2
    assert "bare.jsonl: no mention has a target" in capsys.readouterr().err


def test_a_part_has_its_own_figures(run: tuple[Path, str]) -> None:
    part = evaluate(run[0], [run[1]]).part("d0")
    assert (len(part.judged), part.accuracy, part.figures()["accuracy"]) == (2, 0.5, 0.5)


def test_only_what_judging_needs_is_kept(run: tuple[Path, str]) -> None:
    wanted = ("d0", "2-3")
    assert links_of(run[0], {wanted, ("other", "0-1")}) == {
        wanted: {"status": "linked", "entity": "A", "entity_id": None, "probability": pytest.approx(0.9)}
        | {"fingerprint": "f", "ranked": ("A", "X")}
    }


@pytest.mark.parametrize(("file", "name"), [
    ("data/wikimel/dev.json", "wikimel"), ("wikimel-test.jsonl.gz", "wikimel"), ("a/b.valid.parquet", "b"),
    ("a/right-pictures.parquet", "right-pictures"), ("s3://bucket/mel/train.json", "mel"),
    ("dev.json", "dev"), ("contest.json", "contest"),
])  # fmt: skip
def test_data_sets_are_named_by_their_files(file: str, name: str) -> None:
    assert dataset(file) == name


# Intervals.


def test_a_document_is_its_text_and_picture(tmp_path: Path) -> None:
    """The official form has a row, and so an id, for each mention."""
    places = [("x y", "a"), ("x y", "a"), ("x y", "b"), ("x z", "a"), ("x", ""), ("x", "")]
    rows = [{"text": t, "mention": "x", "target": "A", "img_url": f"e://{p}" if p else ""} for t, p in places]
    gold = tmp_path / "dev.json"
    gold.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate(write_answers(tmp_path / "run", str(gold), [("linked", 1, ["A"])] * 6), [str(gold)])
    assert (found.figures()["mentions"], found.figures()["documents"]) == (6, 4)


def test_pictures_in_the_file_tell_documents_apart(tmp_path: Path) -> None:
    mentions = [[{"start": 0, "end": 1, "target": "A"}]] * 3
    gold = tmp_path / "gold.parquet"
    pq.write_table(pa.table({"text": ["x"] * 3, "image": [b"1", b"1", b"2"], "mentions": mentions}), gold)
    found = evaluate(write_answers(tmp_path / "run", str(gold), [("linked", 1, ["A"])] * 3), [str(gold)])
    assert found.figures()["documents"] == 2


def test_intervals_are_those_of_resampled_documents() -> None:
    """By brute force: each resample's mentions laid out one by one."""
    documents = ["a", "a", "a", "b", "b", "c", "d", "d", "e", "f"]
    right = np.array([1, 0, 1, 1, 1, 0, 0, 1, 0, 1.0])
    drawn = Resampling(documents, draws=300, seed=3)
    times = drawn.sums(np.array([[float(d == name) for name in "abcdef"] for d in documents]))[1:]
    sizes = np.array([documents.count(name) for name in "abcdef"])
    shares = []
    for row in np.rint(times / sizes).astype(int):
        assert row.sum() == 6
        shares.append(
            np.concatenate(
                [np.repeat(right[i], row["abcdef".index(d)]) for i, d in enumerate(documents)]
            ).mean()
        )
    figure = drawn.shares(right[:, None], np.ones((10, 1)))[0]
    assert figure.value == 0.6
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))


def test_an_interval_is_as_wide_as_theory_says() -> None:
    right = np.random.default_rng(1).random((2000, 1)) < 0.7
    figure = Resampling([str(i) for i in range(2000)]).shares(right, np.ones_like(right))[0]
    expected = 2 * 1.96 * math.sqrt(figure.value * (1 - figure.value) / 2000)
    assert figure.high - figure.low == pytest.approx(expected, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(1, 4))
def test_mentions_that_only_repeat_their_document_add_nothing(right: list[bool], times: int) -> None:
    documents = [str(i) for i in range(len(right))]
    once = Resampling(documents, draws=100).shares(np.array(right)[:, None], np.ones((len(right), 1)))[0]
    again = np.repeat(right, times)[:, None]
    more = Resampling(list(np.repeat(documents, times)), draws=100).shares(again, np.ones_like(again))[0]
    assert (more.value, more.low, more.high) == pytest.approx((once.value, once.low, once.high))
    assert once.low <= once.value <= once.high


@pytest.mark.parametrize("right", [0, 9])
def test_where_all_agree_the_interval_is_wilsons(right: int) -> None:
    column = np.full((9, 1), right / 9)
    figure = Resampling([str(i) for i in range(9)]).shares(column, np.ones((9, 1)))[0]
    expected = binomtest(right, 9).proportion_ci(method="wilson")
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_there_are_no_figures_without_mentions() -> None:
    figure = Resampling(["a", "b"]).shares(np.ones((2, 1)), np.zeros((2, 1)))[0]
    assert figure.plain() == {"value": None, "interval_95": None, "mentions": 0}


# Breakdowns and popularity.

TRAIN = Known(
    targets=Counter({"A": 9, "B": 5, "C": 1}),
    targets_of={"two": Counter({"A": 1, "B": 1})},
    popularity={"A": 10.0, "B": 5.0, "C": 2.0, "D": 1.0, "m": None},
    entities=6,
)
FOUR = [
    judged("A", "A", mention="two", document="1"),
    judged("B", "A", mention="two", document="2"),
    judged("C", "C", document="3"),
    judged("D", "B", document="4"),
    judged("E", None, mention="B", document="5"),
]


def test_breakdowns_are_what_a_count_by_hand_gives() -> None:
    tables = {
        name: {label: (f.value, f.mentions) for label, f in table.items()}
        for name, table in breakdowns(FOUR, TRAIN).items()
    }
    assert tables == {
        "dataset": {"s": (0.4, 5)},
        "ambiguity": {"0": (1 / 3, 3), "2": (0.5, 2)},
        "popularity": {"never": (0.0, 2), "once": (1.0, 1), "2-5": (0.0, 1), "more": (1.0, 1)},
        "seen": {"seen": (2 / 3, 3), "unseen": (0.0, 2)},
        "novelty": {"target known for the mention": (0.5, 2), "mention not known": (1 / 3, 3)},
        "mention_is_name": {"it is": (1 / 3, 3), "it is not": (0.5, 2)},
        "kb_popularity": {
            "lowest": (0.0, 1),
            "second": (1.0, 1),
            "third": (0.0, 1),
            "highest": (1.0, 1),
            "not given": (0.0, 1),
        },
    }


def test_types_come_from_the_gold(run: tuple[Path, str]) -> None:
    types = evaluate(run[0], [run[1]]).figures()["breakdowns"]["type"]
    assert {label: figure["mentions"] for label, figure in types.items()} == {"place": 2, "person": 1}


def test_rare_types_are_told_together() -> None:
    many = [judged("A", "A", document=str(i)) for i in range(60)]
    for number, one in enumerate(many):
        one.gold["type"] = f"t{number % 40}"
    types = breakdowns(many, Known())["type"]
    assert len(types) == 31
    assert sum(figure.mentions for figure in types.values()) == 60
    assert list(types)[-1] == "all others"


def test_popularity_is_what_a_count_by_hand_gives() -> None:
    found = popularity(FOUR, TRAIN)
    assert {name: figure.value for name, figure in found.items()} == {
        "predicted_mean": (9 + 9 + 1 + 5) / 4,  # the answer nil has no popularity
        "true_mean": (9 + 5 + 1 + 0) / 4,
        "wrong_more": 1.0,
        "wrong_equal": 0.0,
        "wrong_less": 0.0,
    }
    assert found["wrong_more"].mentions == 2


# Calibration.


def sure(count: int) -> list[Judged]:
    random = np.random.default_rng(5)
    said = np.round(random.random(count), 2)  # with ties
    return [
        judged("A", "A" if random.random() < p else "B", document=str(i), probability=float(p))
        for i, p in enumerate(said)
    ]


def test_reliability_is_what_scikit_learn_computes() -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    some = sure(500)
    said, right = np.array([j.probability for j in some]), np.array([j.right for j in some])
    found = calibration(some)
    assert found
    was, mean = calibration_curve(right, said, n_bins=10, strategy="quantile")
    bins = found.reliability
    assert [b.accuracy.value for b in bins] == pytest.approx(list(was))
    assert [b.probability for b in bins] == pytest.approx(list(mean))
    assert found.brier.value == pytest.approx(brier_score_loss(right, said))
    weights = np.array([b.accuracy.mentions for b in bins]) / 500
    assert found.expected_error.value == pytest.approx(float((weights * abs(was - mean)).sum()))


def test_coverage_is_what_brute_force_gives() -> None:
    some = [*sure(97), judged("A", None, document="x")]
    found = calibration(some)
    assert found
    for step in found.coverage:
        kept = [j for j in some if j.probability is not None and j.probability >= step.threshold]
        assert step.coverage == pytest.approx(len(kept) / 98)
        assert step.accuracy.value == pytest.approx(sum(j.right for j in kept) / len(kept))
    assert found.coverage[-1].coverage == pytest.approx(97 / 98)


def test_a_threshold_of_the_run_changes_no_calibration() -> None:
    """The probability is the best candidate's: nil does not make it wrong."""
    held = judged("A", None, probability=0.9)
    assert held.link
    held.link["ranked"] = ("A",)
    found = calibration([held])
    assert found
    assert found.reliability[0].accuracy.value == 1.0


# The baseline.


@pytest.mark.parametrize(("mention", "answer"), [
    ("jaguar", "Jaguar Cars"),  # its most frequent target, though a name holds it, too
    ("Paris", "Paris"),  # exactly a name
    ("paris hilton", "Paris Hilton"),  # all its words, without case
    ("Hilton", "Hilton Hotels"),  # of those that hold it, the most frequent target
    ("york", "York"),  # of equally frequent ones the shorter
    ("York Hilton", None), ("?", None),
])  # fmt: skip
def test_the_baseline_answers_the_usual_target_or_the_best_name_in_the_mention(
    tmp_path: Path, mention: str, answer: str | None
) -> None:
    cases = [("jaguar", "Jaguar")] + [("jaguar", "Jaguar Cars")] * 2 + [("the hotel", "Hilton Hotels")]
    rows = [{"text": m, "mention": m, "target": t, "golden": "Q"} for m, t in cases]
    train = tmp_path / "train.json"
    train.write_text("\n".join(map(json.dumps, rows)))
    names = ["New York", "York", "Paris", "Paris Hilton", "Hilton Hotels", "Jaguar"]
    assert Baseline(known([str(train)], map(Named, names))).answer(mention) == answer


@pytest.mark.parametrize(("name", "low", "high"), [("wikidiverse", 0.70, 0.75), ("wikimel", 0.78, 0.85)])
def test_the_baseline_is_as_accurate_on_real_captions_as_it_should_be(
    name: str, low: float, high: float
) -> None:
    if not SHARED.exists():
        pytest.skip("the real captions are not on this machine")
    files = SHARED / name
    baseline = Baseline(known([str(files / "train.json")], named_in(str(SHARED / "kb" / "entities.jsonl"))))
    found = baseline.judged([Judged(row, None) for row in gold_mentions([str(files / "dev.json")])])
    assert low < sum(j.right for j in found) / len(found) < high


def test_a_name_of_several_entities_is_as_popular_as_the_greatest() -> None:
    found = known(entities=starmap(Named, [("A",), ("A", 2.0), ("A", 1.0), ("A",), ("B",)]))
    assert (found.popularity, found.entities) == ({"A": 2.0, "B": None}, 5)


def test_a_workspace_tells_its_entities(tmp_path: Path) -> None:
    rows = [{"id": "1", "name": "A", "popularity": 3.0}, {"id": "2", "name": "B", "popularity": None}]
    entities.write(rows, tmp_path / "entities.arrow")
    (tmp_path / "workspace.json").write_text('{"format": 1}')
    assert list(named_in_workspace(tmp_path)) == [("A", 3.0, False), ("B", None, False)]


# Two runs.


def manifest(output: Path, version: str, beams: int) -> None:
    configuration = {"generate": {"beams": beams, "dtype": "float32"}}
    (output / "manifest.json").write_text(
        json.dumps({"workspace": {"version": version}, "configuration": configuration})
    )


def two_runs(
    folder: Path, ours: Sequence[str | None], theirs: Sequence[str | None]
) -> tuple[Path, Path, str]:
    gold = write_gold(folder / "g.jsonl", [[{"target": "A"}] for _ in ours])
    outputs = []
    for name, answers in (("ours", ours), ("theirs", theirs)):
        rows: list[Answer | None] = [("linked", 0.5, [a]) if a else None for a in answers]
        outputs.append(write_answers(folder / name, gold, rows, fingerprint=name))
    return outputs[0], outputs[1], gold


def test_comparing_two_runs_gives_what_a_count_by_hand_gives(tmp_path: Path) -> None:
    ours, theirs, gold = two_runs(tmp_path, list("AAAAAAABBC"), list("BBBBBAAABB"))
    manifest(ours, "v", 5)
    manifest(theirs, "v", 1)
    found = compare(evaluate(ours, [gold]), evaluate(theirs, [gold])).figures()
    assert (found["won"], found["lost"], found["mentions"]) == (5, 1, 10)
    assert found["mcnemar_p"] == pytest.approx(2 * (math.comb(6, 0) + math.comb(6, 1)) / 2**6)
    assert (found["accuracy"]["value"], found["accuracy_against"]["value"]) == (0.7, 0.3)
    assert found["difference"]["value"] == pytest.approx(0.4)
    low, high = found["difference"]["interval_95"]
    assert low < 0.4 < high
    assert found["settings"] == {"generate.beams": [5, 1]}
    assert found["notes"] == []
    rows = found["disagreements"]
    assert [row["document_id"] for row in rows] == [
        "d7",
        "d0",
        "d1",
        "d2",
        "d3",
        "d4",
        "d9",
    ]  # lost, won, wrong
    assert rows[0] == {
        "document_id": "d7", "mention_id": "2-3", "mention": "x", "target": "A", "answer": "B",
        "answer_against": "A", "right": False, "right_against": True,
    }  # fmt: skip


def test_a_paired_interval_is_narrower_than_two_runs_apart(tmp_path: Path) -> None:
    """Both runs are right on the same mentions but a few: documents are drawn for both at once."""
    ours, theirs, gold = two_runs(tmp_path, ["A"] * 105 + ["B"] * 95, ["A"] * 100 + ["B"] * 100)
    found = compare(evaluate(ours, [gold]), evaluate(theirs, [gold])).figures()
    widths = {n: np.diff(found[n]["interval_95"])[0] for n in ("accuracy", "accuracy_against", "difference")}
    assert widths["difference"] < 0.5 * min(widths["accuracy"], widths["accuracy_against"])


def test_a_run_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    ours, _, gold = two_runs(tmp_path, list("AB"), list("AB"))
    found = compare(evaluate(ours, [gold]), evaluate(ours, [gold])).figures()
    assert (found["difference"]["value"], found["mcnemar_p"], found["disagreements"]) == (0.0, 1.0, [])
    assert any("same fingerprint" in note for note in found["notes"])


def test_runs_that_are_unlike_say_so(tmp_path: Path) -> None:
    ours, theirs, gold = two_runs(tmp_path, ["A", "A", None, None], ["A", "B", "A", None])
    found = compare(evaluate(ours, [gold]), evaluate(theirs, [gold])).figures()
    assert found["mentions"] == 2
    assert any("0 are only in the first and 1 only in the second" in note for note in found["notes"])
    assert any("manifest.json is missing" in note for note in found["notes"])
    manifest(ours, "v1", 5)
    manifest(theirs, "v2", 5)
    write_answers(
        ours, write_gold(tmp_path / "g2.jsonl", [[{"target": "A"}] * 2]), [None, ("linked", 1, ["A"])], "g"
    )
    both = [str(tmp_path / "g.jsonl"), str(tmp_path / "g2.jsonl")]
    notes = compare(evaluate(ours, both), evaluate(theirs, both)).notes
    assert any("different knowledge (workspaces v1 and v2)" in note for note in notes)
    assert any("the first run's links have 2 fingerprints" in note for note in notes)


def test_runs_without_a_mention_in_common_are_not_compared(tmp_path: Path) -> None:
    ours, theirs, gold = two_runs(tmp_path, ["A", None], [None, "A"])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(evaluate(ours, [gold]), evaluate(theirs, [gold]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_comparing_the_other_way_round_turns_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    from gemel_ray.evaluation import Comparison

    ours, theirs = (
        [judged("A", "A" if pair[side] else "B", document=str(i)) for i, pair in enumerate(pairs)]
        for side in (0, 1)
    )
    there, back = Comparison(ours, theirs, (), {}).figures(), Comparison(theirs, ours, (), {}).figures()
    assert there["difference"]["value"] == -back["difference"]["value"]
    assert (there["won"], there["lost"], there["mcnemar_p"]) == (back["lost"], back["won"], back["mcnemar_p"])
    assert there["won"] - there["lost"] == round(there["difference"]["value"] * len(pairs), 2).__round__()


def test_gold_of_other_documents_is_refused_with_an_id_of_each(tmp_path: Path) -> None:
    gold = write_gold(tmp_path / "gold.jsonl", [[{"target": "a"}]])
    linked = write_answers(tmp_path / "out", gold, [("linked", 0.9, ["a"])])
    other = tmp_path / "other.csv"
    other.write_text("id,text,mention,target\nz9,A text.,text,a\n")
    with pytest.raises(
        ValueError, match=r"has 2-3 of document 'd0'.* 2-6 of document 'z9': no mention is in both"
    ):
        evaluate(linked, [str(other)])
