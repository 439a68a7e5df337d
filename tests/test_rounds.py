"""Beams in lock step in the real engine: what rollouts find, and what becomes of those who leave or fail."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from files import TEST
from tiny_training import tiny_language_model

from gemel_ray.config import Config, load
from gemel_ray.engine.rounds import Rounds
from gemel_ray.engine.run import Engine
from gemel_ray.engine.vllm import opening, recorded, seam
from gemel_ray.engine.vllm.opening import opened, prove
from gemel_ray.engine.vllm.seam import Refused
from gemel_ray.engine.vllm.starting import EngineOptions
from gemel_ray.engine.work import Candidate
from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.readers import documents
from gemel_ray.stages.generating import Generating, _engine_options

pytestmark = pytest.mark.slow
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows(workspace: Workspace, config: Config) -> Rows:
    """Prompts of pictures behind two sets of demonstrations with pictures, and one without any."""
    found: Rows = []
    for settings in ({"shared_sets": 2, "nearest": 1}, {"demonstrations": 0}):
        own = replace(config, retrieve=replace(config.retrieve, **settings))
        segment = linking_graph(own, workspace).segment(
            ["detect", "encode", "retrieve", "assemble"], workspace
        )
        table = next(documents(str(TEST), batch=24 if not found else 4))
        found += asyncio.run(segment.run(table)).to_pylist()
        segment.close()
    return found


def both(work: Generating, rows: Rows) -> tuple[list[list[Candidate]], ...]:
    """What is found in rounds, and by rollouts."""

    async def one_way(search: Any) -> list[list[Candidate]]:
        return list(await asyncio.gather(*(search(work.stage, row) for row in rows)))

    return asyncio.run(one_way(work._in_rounds)), asyncio.run(one_way(work.rollouts.names))


def same(ours: list[list[Candidate]], theirs: list[list[Candidate]]) -> None:
    assert [[c.leaf for c in found] for found in ours] == [[c.leaf for c in found] for found in theirs]
    for found, expected in zip(ours, theirs, strict=True):
        assert [c.score for c in found] == pytest.approx([c.score for c in expected], abs=1e-3)
        assert [c.log_prob for c in found] == pytest.approx([c.log_prob for c in expected], abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beams": 1},
        {"length_penalty": 1.0},
        {"score": "paper", "length_penalty": 1.0, "beams": 3},
        {"beams": 40},
    ],
)
def test_rounds_find_what_rollouts_find(
    generating: Generating, rows: Rows, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*rows[:3], *rows[-3:]] if settings else rows
    assert len({tuple(row["prompt"][: row["beginning"]]) for row in few}) > 1
    assert any(t < 0 for row in few for t in row["prompt"][: row["beginning"]]), "no picture to begin with"
    monkeypatch.setattr(generating, "stage", replace(generating.stage, **settings))
    ours, theirs = both(generating, few)
    same(ours, theirs)


def within(engine: Engine, work: Callable[[], Any]) -> Any:
    """Do it in the engine's thread, between two of its steps."""
    outcome: Future[Any] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except Exception as fault:
            outcome.set_exception(fault)

    engine._inbox.put(call)
    return outcome.result(60)


def rounds_of(work: Generating) -> Rounds:
    assert work.engine._rounds is not None, "this engine searches by rollouts"
    return work.engine._rounds


def blocks_free(work: Generating) -> int:
    """With no beginning kept."""
    arena = rounds_of(work).arena
    within(work.engine, arena.forget)
    return len(arena._free)


def test_another_engine_of_the_process_changes_no_answer(
    generating: Generating, rows: Rows, tmp_path: Path
) -> None:
    """vLLM has one connector in a process, and process groups, and ends them with any engine."""

    def found() -> list[list[list[int]]]:
        generating.engine.forget()
        return [[[c.leaf for c in row] for row in way] for way in both(generating, rows)]

    before = found()
    tiny = str(tiny_language_model(tmp_path / "tiny", head=32))
    other = Engine(EngineOptions(model=tiny, dtype="float32", length=256, rounds="never"), end_token=0)
    beside = found()
    other.close()
    other.close()
    assert beside == found() == before


def test_a_start_that_fails_leaves_no_engine(
    generating: Generating, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapper is another model's, which shows when the engine has started."""
    tiny = str(tiny_language_model(tmp_path / "tiny", head=32))
    monkeypatch.setattr(Workspace, "language_model", tiny)
    before = engines()
    with pytest.raises(WorkspaceError, match=r"mapper.safetensors writes vectors of 576, .* have 128"):
        Generating(replace(generating.stage, dtype="float32", length=256), workspace, generating.shown)
    assert engines() == before


def engines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "engine"]


def test_a_pass_has_its_limit(generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in parts, and beams that are too many for one pass take several."""
    few = [rows[0], rows[-1]]
    monkeypatch.setattr(generating, "stage", replace(generating.stage, beams=40))
    whole = asyncio.run(in_rounds(generating, few))
    rounds, passes = rounds_of(generating), list[tuple[int, int]]()
    forward = rounds.seam.forward

    def counted(embeddings: Any, *others: Any) -> Any:
        passes.append((rounds.rounds, len(embeddings)))
        return forward(embeddings, *others)

    monkeypatch.setattr(rounds.seam, "forward", counted)
    monkeypatch.setattr(rounds.seam, "tokens", 12)
    within(generating.engine, rounds.arena.forget)
    same(asyncio.run(in_rounds(generating, few)), whole)
    assert max(tokens for _, tokens in passes) <= 12
    assert len({number for number, _ in passes}) < len(passes)


class CalledAgain:
    """In the place of a CUDA graph, which only a GPU has: the same call, made again."""

    def __init__(self, call: Callable[[], Any], pool: Any = None) -> None:
        self.call, self.calls = call, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.call()


def test_recorded_passes_find_the_same(
    generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes with tokens and rows that nobody fills, after others that filled them."""
    there = rounds_of(generating).seam
    monkeypatch.setattr(recorded, "Replayed", CalledAgain)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    made = recorded.Recorded(there)
    plain, expected = both(generating, rows)
    monkeypatch.setattr(there, "recorded", made)
    same(asyncio.run(in_rounds(generating, rows)), expected)
    assert sum(one.calls for one in made._passes.values()) > 1  # type: ignore[attr-defined]
    same(plain, expected)


def test_recorded_copies_copy_blocks(generating: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    work = rounds_of(generating)
    monkeypatch.setattr(recorded, "Replayed", CalledAgain)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(recorded, "_COPIES", (2, 4))
    free = work.arena._free[:24]
    pairs = np.array(list(zip(free[:12], free[12:], strict=True)))[:11]
    (cache, dim), *_ = work.seam.caches
    contents = torch.arange(cache.shape[dim], dtype=cache.dtype).view(-1, *[1] * (cache.dim() - 1))
    with torch.inference_mode():
        made, before = recorded.Recorded(work.seam), cache.clone()
        cache.copy_(contents.expand_as(cache))
        made.copy(pairs)
        after = cache.flatten(1)[:, 0].clone()
        cache.copy_(before)
    expected = contents.flatten().clone()
    expected[pairs[:, 1]] = expected[pairs[:, 0]]
    assert torch.equal(after, expected)


def test_two_parts_take_turns(generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: six columns, three in each part, and more mentions than those."""
    whole, rounds = asyncio.run(in_rounds(generating, rows)), rounds_of(generating)
    parts = Rounds(rounds.seam, rounds.arena, 6, generating.stage.beams, parts=2)
    monkeypatch.setattr(generating.engine, "_rounds", parts)
    same(asyncio.run(in_rounds(generating, rows)), whole)
    (lane,) = parts._lanes.values()
    assert [part.growing.columns for part in lane.parts] == [3, 3]
    assert all(part._result is not None for part in lane.parts)  # each made rounds


async def in_rounds(work: Generating, rows: Rows) -> list[list[Candidate]]:
    return list(await asyncio.gather(*(work._in_rounds(work.stage, row) for row in rows)))


def test_who_leaves_frees_the_column_and_disturbs_nobody(generating: Generating, rows: Rows) -> None:
    expected = asyncio.run(in_rounds(generating, rows))
    free = blocks_free(generating)

    async def some_leave() -> list[list[Candidate]]:
        tasks = [asyncio.create_task(generating._in_rounds(generating.stage, row)) for row in rows]
        start = rounds_of(generating).rounds
        while rounds_of(generating).rounds < start + 3:
            await asyncio.sleep(0.001)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[::2], return_exceptions=True)
        return [await task for task in tasks[1::2]]

    same(asyncio.run(some_leave()), expected[1::2])
    until_idle(generating)
    assert blocks_free(generating) == free
    same(asyncio.run(in_rounds(generating, rows)), expected)


def until_idle(work: Generating) -> None:
    while work.engine.busy:
        time.sleep(0.005)


def test_a_bad_row_is_an_error_and_the_others_are_answered(
    generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt is too long; one is of a model that gives no finite number (here: its logits are overwritten
    in the first pass that reads it)."""
    long = rows[0] | {"prompt": rows[0]["prompt"] * 40}
    met, broken = rounds_of(generating).seam, [2]
    logits = met.logits

    def overwritten(*asked: Any) -> Any:
        made = logits(*asked)
        if broken and len(made) > broken[0]:
            made[broken.pop()] = float("nan")
        return made

    monkeypatch.setattr(met, "logits", overwritten)
    answers = asyncio.run(generating.linked([long, *rows[:8]]))
    assert "set generate.length to " in answers[0]["error"]
    failed = [a for a in answers[1:] if a.get("error")]
    assert len(failed) == 1 and "not finite" in failed[0]["error"]
    monkeypatch.undo()
    again = asyncio.run(generating.linked(rows[:8]))
    assert [a["entity"] for a in answers[1:] if "entity" in a] == [
        b["entity"] for a, b in zip(answers[1:], again, strict=True) if "entity" in a
    ]


def test_a_document_s_options_are_obeyed_in_rounds(generating: Generating, rows: Rows) -> None:
    """Other numbers of candidates have rounds of their own beside the others; exact search has none."""
    wishes = [{"candidates": 2}, {"candidates": 9}, {"search": "exact"}, {}]
    asked = [row | {"options": wish} for row, wish in zip(rows, wishes, strict=False)]
    before = replace(generating.usage)
    answers = asyncio.run(generating.linked(asked))
    assert [len(a["candidates"]) <= n for a, n in zip(answers, (2, 9, 5, 5), strict=True)] == [True] * 4
    for row, answer in zip(asked[:2], answers[:2], strict=True):
        alone = replace(generating.stage, beams=row["options"]["candidates"])
        found = asyncio.run(generating.rollouts.names(alone, row))
        assert answer["entity"] == asyncio.run(generating.linked([row]))[0]["entity"]
        assert found
    assert generating.usage.requests > before.requests  # exact search's


def test_the_model_is_asked_only_where_the_ranker_is_unsure(generating: Generating, rows: Rows) -> None:
    def linked(chance: float) -> tuple[dict[str, Any], int]:
        """A mention whose likeliest entity has this probability, and the tokens that the model was asked."""
        before, chances = generating.usage.asked, [math.log(chance), math.log(0.01)]
        (row,) = asyncio.run(generating.linked([rows[0] | {"likely": [3, 5], "chances": chances}]))
        return row, generating.usage.asked - before

    sure, asked = linked(generating.stage.sure + 0.05)
    entity = generating.names.entities.of([3])[0]
    assert (sure["entity_id"], sure["entity"], sure["status"], asked) == (*entity, "linked", 0)
    assert sure["probability"] == pytest.approx(generating.stage.sure + 0.05)
    assert linked(generating.stage.sure - 0.05)[1] > 0


@pytest.mark.parametrize("wrong", ["start", "table", "copy"])
def test_an_engine_whose_rounds_say_other_things_is_found_out(
    generating: Generating, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """As if vLLM meant something else by a position or a block, or kept blocks in another way."""
    engine, rounds = generating.engine, rounds_of(generating)
    forward = rounds.seam.forward

    def other(embeddings: Any, start: Any, count: Any, table: Any, alike: int) -> Any:
        if wrong == "start":
            return forward(embeddings, start + (start > 0), count, table, alike)
        return forward(embeddings, start, count, np.roll(table, 1, axis=1), alike)

    if wrong == "copy":
        monkeypatch.setattr(rounds.seam, "copy", lambda blocks: None)
    else:
        monkeypatch.setattr(rounds.seam, "forward", other)

    def proven() -> None:
        rounds.arena.forget()  # what was computed wrong
        prove(engine._rollouts, engine._embeddings, engine.end_token, rounds)

    with pytest.raises(Refused, match="differ"):
        within(engine, proven)
    monkeypatch.undo()
    within(engine, proven)


def test_what_refuses_is_said_and_gives_its_blocks_back(
    generating: Generating, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = generating.engine

    def refuse(*given: Any) -> None:
        raise Refused("numbers differ")

    def moved(embeddings: Any, *others: Any) -> Any:
        raise TypeError("an argument that vLLM no longer has")

    def reopened(rounds: str, arena: float) -> Any:
        options = replace(engine.options, rounds=rounds, arena=arena)
        return within(
            engine,
            lambda: opened(engine._engine, engine._rollouts, options, engine._embeddings, engine.end_token),
        )

    pool: Any = engine._engine.engine_core
    pool = pool.engine_core.scheduler.kv_cache_manager.block_pool
    before = pool.num_gpu_blocks, pool.get_num_free_blocks()
    with monkeypatch.context() as other:
        other.setattr(seam.Seam, "forward", moved)
        assert reopened("auto", 0.2) is None
        assert "an argument that vLLM no longer has" in caplog.messages[-1]
        assert not engine._rollouts.running
        caplog.clear()
    monkeypatch.setattr(opening, "prove", refuse)
    assert reopened("never", 0.2) is None
    assert not caplog.messages
    assert reopened("auto", 0.2) is None
    assert "numbers differ" in caplog.messages[-1]
    with pytest.raises(Refused, match="numbers differ"):
        reopened("always", 0.2)
    assert reopened("auto", 0.001) is None
    assert "no room" in caplog.messages[-1]
    assert (pool.num_gpu_blocks, pool.get_num_free_blocks()) == before


def test_a_vllm_that_has_moved_is_refused() -> None:
    def build(attn_groups: Any, num_reqs: int, new: Any, other: int = 0) -> None:
        pass

    seam._takes(build, ("attn_groups", "num_reqs", "new"))
    seam._takes(build, ("attn_groups", "num_reqs", "new", "other"))
    for given in (("attn_groups", "num_reqs"), ("attn_groups", "num_reqs", "new", "gone")):
        with pytest.raises(Refused, match="build has other arguments"):
            seam._takes(build, given)
    runner = SimpleNamespace(model_runner=SimpleNamespace(model=None))
    with pytest.raises(Refused, match="attn_groups"):
        seam.Seam(runner, 8)


class _Head:
    """A model's output layer: a product, and what some models do besides."""

    def __init__(self, besides: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
        weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
        self.lm_head, self.besides = SimpleNamespace(weight=weight.to(dtype)), besides

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.besides(hidden @ self.lm_head.weight.T)[:, :47]  # the rest is padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_a_plain_product_gives_the_logits_of_some_tokens(dtype: torch.dtype) -> None:
    plain = _Head(lambda logits: logits, dtype)
    assert seam._output_weights(plain) is not None
    for besides in (
        lambda logits: logits + 0.1,
        lambda logits: logits * 0.9,
        lambda logits: 30 * torch.tanh(logits / 30),
    ):
        assert seam._output_weights(_Head(besides, dtype)) is None
    plain.lm_head.weight = plain.lm_head.weight.to(torch.int8)
    assert seam._output_weights(plain) is None
    assert seam._output_weights(SimpleNamespace()) is None


def test_scores_among_children_need_no_other_logits(
    generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, computed = rounds_of(generating).seam, list[int]()
    if met.device.type != "cpu":
        pytest.skip("a GPU computes all logits")
    logits = met.logits

    def counted(*asked: Any) -> Any:
        made = logits(*asked)
        computed.append(made.shape[1])
        return made

    monkeypatch.setattr(met, "logits", counted)
    found = asyncio.run(in_rounds(generating, rows[:4]))
    whole = len(generating.engine._embeddings)
    assert computed and max(computed) < whole
    monkeypatch.setattr(met, "output", None)
    computed.clear()
    same(asyncio.run(in_rounds(generating, rows[:4])), found)
    assert set(computed) == {whole}


def test_rollouts_are_asked_where_rounds_are_not_to_be_had(generating: Generating, rows: Rows) -> None:
    """An engine without them; and demonstrations that are the mention's own."""
    engine, asked = generating.engine, generating.stage
    own = [row | {"beginning": 0} for row in rows[:3]]
    assert asyncio.run(in_rounds(generating, own)) == [[]] * 3
    expected = asyncio.run(in_rounds(generating, rows[:3]))
    rounds, engine._rounds = engine._rounds, None
    try:
        answers = asyncio.run(generating.linked(rows[:3]))
    finally:
        engine._rounds = rounds
    same([asyncio.run(generating.rollouts.names(asked, row)) for row in own], expected)
    assert all(answer["status"] == "linked" for answer in answers)


def test_nothing_is_left_of_a_tree_that_nobody_asks_for(
    generating: Generating, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of knowledge: the former tree's rounds, and its arrays on the device."""
    former, rounds = PrefixTree.open(generating.tree_folder), rounds_of(generating)
    monkeypatch.setattr(generating, "tree", former)
    asyncio.run(in_rounds(generating, rows[:2]))
    assert former in {search.tree for search in rounds._lanes}
    generating.retire()
    within(generating.engine, lambda: None)
    assert former not in {search.tree for search in rounds._lanes} | rounds._trees.keys()


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ([], "auto"),
        (["generate.search=exact"], "never"),
        (["retrieve.shared_sets=0"], "never"),
        (["retrieve.shared_sets=0", "retrieve.demonstrations=0"], "auto"),
    ],
)
def test_rounds_that_nobody_would_be_in_take_none_of_the_cache(
    workspace_folder: Path, settings: list[str], rounds: str
) -> None:
    config = load(None, read_facts(workspace_folder)["settings"], settings)
    options = _engine_options(config.generate, "model", config.retrieve)
    assert options.rounds == rounds
