"""The language model beside the ranker: its choice among the best, and the weights of both, learned."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import lines
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.engine.search import Candidate
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.stages.choosing import normalised, reranked
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.generating import Generating, ModelAnswer

SETTINGS = (
    "bank.ranker=20", "retrieve.demonstrations=4", "generate.rerank=3", "generate.sure=1",
    "generate.choice_weight=1", "generate.dtype=float32", "generate.length=1024", "generate.cache_gib=1.0",
)  # fmt: skip
TRADES = ("painter", "footballer", "astronomer", "senator", "cellist")
SURNAMES = ("Almeida", "Brandt", "Castellan", "Dvorsky", "Eriksen", "Fontaine")
BEFORE = ["detect", "encode", "retrieve", "assemble"]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: Any) -> Workspace:
    """All people of one surname have one name, too: only their descriptions differ."""
    folder = tmp_path_factory.mktemp("choosing")
    people = [(f"Q{i}", f"Jo {s}", s, t) for i, (s, t) in enumerate((s, t) for s in SURNAMES for t in TRADES)]
    kb = [{"id": i, "name": name, "description": f"{t} from Utrecht"} for i, name, _, t in people]
    solved = [
        {"text": f"The {t} {s} was there.", "mention": s, "target_id": i, "target": name}
        for i, name, s, t in people
    ]
    train, base = lines(folder / "train.jsonl", solved), lines(folder / "kb.jsonl", kb)
    build(load(None, {}, SETTINGS), base, [train], folder / "ws", print)
    config = load(None, read_facts(folder / "ws")["settings"], SETTINGS)
    return Workspace.open(folder / "ws", config)


def prompts(ranked: Workspace, folder: Path, *settings: str) -> tuple[Config, list[dict[str, Any]]]:
    """What Generate reads of two mentions."""
    config = load(None, ranked.facts["settings"], [*SETTINGS, *settings])
    asked = [{"text": f"Brandt, a {t}, was here.", "mention": "Brandt"} for t in ("senator", "painter")]
    segment = linking_graph(config, ranked).segment(BEFORE, ranked)
    rows = asyncio.run(segment.run(next(documents(lines(folder / "asked.jsonl", asked))))).to_pylist()
    segment.close()
    return config, rows


def test_candidates_are_listed_with_their_descriptions(ranked: Workspace, tmp_path: Path) -> None:
    _, rows = prompts(ranked, tmp_path)
    for row in rows:
        text = ranked.tokenizer.decode(row["choice"])
        about = [ranked.entities.table["description"][entity].as_py() for entity in row["likely"]]
        three = zip("ABC", ranked.entities.of(row["likely"]), about, strict=False)
        expected = "".join(f"{letter}. {name}: {a}\n" for letter, (_, name), a in three)
        assert f"[Candidates]\n{expected}[Question]Which candidate does Brandt" in text
        assert text.endswith("[Answer]")


@pytest.mark.parametrize("settings", [("generate.sure=0",), ("generate.rerank=0",), ("retrieve.ranking=0",),
                                      ("generate.ranking=0",)])  # fmt: skip
def test_nothing_is_listed_where_nothing_is_to_be_chosen(
    ranked: Workspace, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    _, rows = prompts(ranked, tmp_path, *settings)
    assert [row["choice"] for row in rows] == [None, None]


@pytest.mark.slow
def test_the_choice_is_the_same_in_rounds_and_by_rollouts_and_decides_the_id(
    ranked: Workspace, generating: Generating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a weight of 1 the language model alone orders the entities of one name."""
    config, rows = prompts(ranked, tmp_path)
    work = Generating(config.generate, ranked, config.retrieve, generating)
    ways = [[asyncio.run(work._chosen(row, work.choosing)) for row in rows]]
    with monkeypatch.context() as patch:
        patch.setattr(work.engine, "takes", lambda *_: False)
        ways.append([asyncio.run(work._chosen(row, work.choosing)) for row in rows])
    for in_rounds, by_rollouts in zip(*ways, strict=True):
        assert in_rounds is not None
        assert np.exp(in_rounds).sum() == pytest.approx(1)
        assert in_rounds == pytest.approx(by_rollouts, abs=1e-3)
        assert np.ptp(in_rounds) > 0.01
    for row, chosen in zip(rows, ways[0], strict=True):
        (linked,) = asyncio.run(work.linked([row]))
        assert linked["status"] == "linked"
        of_name = {
            identity: p
            for (identity, name), p in zip(ranked.entities.of(row["likely"]), np.exp(chosen), strict=False)
            if name == linked["entity"]
        }
        assert linked["entity_id"] == max(of_name, key=of_name.__getitem__)
        assert f", by its choice: {max(of_name.values()):.0%}" in linked["why"]


@pytest.mark.slow
def test_candidates_that_were_not_written_are_judged_as_if_they_were(
    ranked: Workspace, generating: Generating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One beam writes one name. What the others get is what six beams, which write all names, give them, and
    what rollouts give them."""
    config, rows = prompts(ranked, tmp_path, "generate.rerank=0")
    work = Generating(config.generate, ranked, config.retrieve, generating)
    whole, one = replace(work.stage, beams=len(SURNAMES)), replace(work.stage, beams=1)
    for row in rows:
        every = {c.leaf: c.log_prob for c in asyncio.run(work.model_answer(whole, row)).names}
        assert len(every) == len(SURNAMES)
        (written,) = asyncio.run(work.model_answer(one, row)).names
        judged = asyncio.run(work.model_answer(replace(one, judged=1e-300), row)).names
        with monkeypatch.context() as patch:
            patch.setattr(work.engine, "takes", lambda *_: False)
            by_rollouts = asyncio.run(work.model_answer(replace(one, judged=1e-300), row)).names
        assert {c.leaf: (c.log_prob, c.score) for c in judged} == {
            c.leaf: pytest.approx((c.log_prob, c.score), abs=1e-4) for c in by_rollouts
        }
        names = {name for _, name in ranked.entities.of(row["likely"])}
        assert len(names) > 1
        assert judged[0] == written
        assert {c.leaf for c in judged} == {written.leaf} | {work.names.leaf(name) for name in names}
        assert {c.leaf: c.log_prob for c in judged} == pytest.approx(
            {c.leaf: every[c.leaf] for c in judged}, abs=1e-3
        )


LOGS = st.lists(st.floats(-9, 0), min_size=2, max_size=8)


@given(LOGS, st.floats(0, 1), st.integers(2, 8))
def test_a_choice_moves_probability_among_those_chosen_from_only(
    logs: list[float], weight: float, count: int
) -> None:
    chances, few = normalised(logs).tolist(), min(count, len(logs))
    chosen = normalised(range(few))
    made = reranked(chances, chosen, weight)
    assert made[few:] == chances[few:]
    assert sum(map(math.exp, made)) == pytest.approx(1)
    if weight == 0:
        assert made == pytest.approx(chances)
    if weight == 1:
        assert np.diff(made[:few]) == pytest.approx(1)


def test_one_candidate_is_no_choice() -> None:
    with pytest.raises(Mistake, match=r"generate\.rerank"):
        load(None, {}, ("generate.rerank=1",))
    assert replace(load(None, {}, ()).generate, rerank=2).rerank == 2


@pytest.fixture
def work(ranked: Workspace, generating: Generating, monkeypatch: pytest.MonkeyPatch) -> Generating:
    """The Generate stage with the engine that all tests share; `train --joining` would start another."""
    config = load(None, read_facts(ranked.folder)["settings"], SETTINGS)
    work = Generating(config.generate, ranked, config.retrieve, generating)
    monkeypatch.setattr(Generate, "start", lambda *_: work)
    monkeypatch.setattr(work, "close", lambda: None)
    return work


@pytest.fixture
def join(
    ranked: Workspace, work: Generating, tmp_path: Path
) -> Iterator[Callable[[list[dict[str, str]]], int]]:
    """`train --joining` on these solved mentions. What it writes into the workspace is taken back."""
    kept = (ranked.folder / "workspace.json").read_text()
    options = [word for setting in SETTINGS if not setting.startswith("bank.") for word in ("--set", setting)]

    def run(solved: list[dict[str, str]]) -> int:
        dev = lines(tmp_path / "dev.jsonl", solved)
        return main(["train", "--joining", "--workspace", str(ranked.folder), "--dev", dev, *options])

    yield run
    (ranked.folder / "workspace.json").write_text(kept)


@pytest.mark.slow
@pytest.mark.parametrize(("who_is_right", "least", "most"), [("model", 0, 0.4), ("ranker", 0.6, 0.98)])
def test_who_is_right_gets_the_weight(
    ranked: Workspace,
    work: Generating,
    join: Callable[[list[dict[str, str]]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    who_is_right: str,
    least: float,
    most: float,
) -> None:
    """The ranker names the person mentioned. Of the language model the answers are made up: the next one."""
    following = dict(zip(SURNAMES, (*SURNAMES[1:], SURNAMES[0]), strict=True))

    async def model_answer(_: Generate, row: dict[str, Any]) -> ModelAnswer:
        leaves = (work.names.leaf(f"Jo {name}") for name in (following[row["mention"]], row["mention"]))
        return ModelAnswer(
            [Candidate(leaf, math.log(p), 0.0) for leaf, p in zip(leaves, (0.8, 0.2), strict=True)], None
        )

    monkeypatch.setattr(work, "model_answer", model_answer)
    right = following if who_is_right == "model" else {name: name for name in SURNAMES}
    solved = [
        {"text": f"{s} came by at {hour} o'clock.", "mention": s, "target": f"Jo {right[s]}"}
        for s in SURNAMES
        for hour in range(7)
    ]
    assert join(solved) == 0
    assert "right in 100.0% with weights learned on the others" in capsys.readouterr().err
    learned = load(None, read_facts(ranked.folder)["settings"], ()).generate
    assert least <= learned.ranking <= most


@pytest.mark.slow
def test_the_weights_are_learned_by_a_command_and_used_from_then_on(
    ranked: Workspace,
    join: Callable[[list[dict[str, str]]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    solved = [
        {"text": f"{s}, who is a {t}, came by.", "mention": s, "target": f"Jo {s}"}
        for s in SURNAMES
        for t in TRADES
    ]
    known = [
        {"text": f"The {t} Brandt was there.", "mention": "Brandt", "target": "Jo Brandt"} for t in TRADES
    ]
    assert join([*solved, *known]) == 0
    said = capsys.readouterr().err
    assert "left out 5 mentions that are examples of the workspace" in said
    assert "about 30 mentions" in said
    learned = load(None, read_facts(ranked.folder)["settings"], ()).generate
    assert f"learned on all: generate.ranking={learned.ranking:g}" in said
    assert f"generate.choice_weight={learned.choice_weight:g}" in said
    assert join(known) == 2
    assert "not sure of 0 mentions" in capsys.readouterr().err
