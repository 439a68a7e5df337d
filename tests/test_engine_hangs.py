"""An engine that hangs, as one over a GPU that no longer answers: no machine does that on request, so here
the engine is a stand-in whose step ends when the test lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_search import make_tree

from gemel_ray.engine import run
from gemel_ray.engine.columns import Mention
from gemel_ray.engine.rounds import Search
from gemel_ray.engine.run import Engine, EngineDied
from gemel_ray.engine.vllm import rollouts
from gemel_ray.engine.work import Prompt, RolloutOptions, TokenPrompt, Usage

PATIENCE = 0.2


class Stuck:
    """Takes every request, and steps for ever."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.model_config = SimpleNamespace(max_model_len=64)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, *request: Any) -> None:
        pass

    def abort_request(self, requests: list[str]) -> None:
        pass

    def step(self) -> list[Any]:
        self.goes_on.wait(600)
        return []


class StuckRounds:
    """Take everybody in, and step till they are let go; then they fail as a GPU does."""

    def __init__(self) -> None:
        self.goes_on, self.inside = threading.Event(), list[Any]()

    @property
    def busy(self) -> bool:
        return bool(self.inside)

    def add(self, search: Search, mention: Mention) -> None:
        self.inside.append(mention)

    def drop(self, search: Search, mention: Mention) -> None:
        self.inside.remove(mention)

    def waiting(self) -> list[Mention]:
        return self.inside

    def step(self) -> None:
        self.goes_on.wait(600)
        raise RuntimeError("an illegal memory access was encountered")


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stuck, Engine]]:
    inner = Stuck()
    monkeypatch.setattr(run, "HUNG", PATIENCE)
    monkeypatch.setattr(run, "start", lambda options: inner)
    monkeypatch.setattr(run, "imported", lambda _: None)
    monkeypatch.setattr(run, "embedding_table", lambda engine: torch.zeros(8, 2))
    monkeypatch.setattr(rollouts, "PrefixHashes", lambda engine: SimpleNamespace(prompts={}))
    for place, name in ((rollouts, "holds"), (run, "sampling"), (run, "opened")):
        monkeypatch.setattr(place, name, lambda *given: None)
    engine = Engine(options=None, end_token=0)  # type: ignore[arg-type]
    yield inner, engine
    inner.goes_on.set()
    engine.close()


def test_an_engine_that_hangs_is_as_good_as_dead(stuck: tuple[Stuck, Engine]) -> None:
    inner, engine = stuck

    async def until_it_says_so() -> None:
        prompt = Prompt(torch.zeros(4, 2), np.arange(4), base=4)
        asked = RolloutOptions(tree="nowhere", node=0, limit=2, wide=4, renormalise=True)
        rollout = asyncio.create_task(engine.rollout(prompt, asked, Usage()))
        with pytest.raises(EngineDied, match="hangs"):
            while not rollout.done():
                await asyncio.sleep(0.02)
                engine.check()
        rollout.cancel()

    time.sleep(2 * PATIENCE)
    engine.check()  # nothing to compute is no reason
    asyncio.run(asyncio.wait_for(until_it_says_so(), 300))
    inner.goes_on.set()
    while engine.busy:
        time.sleep(0.02)
    engine.check()


def test_rounds_that_hang_are_found_out_and_their_death_is_everybody_s(
    stuck: tuple[Stuck, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those inside, and those whose turn to be let in never came."""
    _, engine = stuck
    rounds: Any = StuckRounds()
    monkeypatch.setattr(engine, "_rounds", rounds)
    search = Search(make_tree(1, 9), 2, 0.0, True)
    ids = np.arange(4)

    async def all_fail() -> None:
        asked = [
            asyncio.create_task(
                engine.beams(search, TokenPrompt(ids[:0], ids[:0]), TokenPrompt(ids, ids), Usage())
            )
            for _ in range(3)
        ]
        with pytest.raises(EngineDied, match="hangs"):
            while True:
                await asyncio.sleep(0.02)
                engine.check()
        late = asyncio.create_task(
            engine.rollout(
                Prompt(torch.zeros(4, 2), ids, base=4),
                RolloutOptions(tree=Path("nowhere"), node=0, limit=2, wide=4),
                Usage(),
            )
        )
        with pytest.raises(EngineDied, match="hangs"):
            await late
        rounds.goes_on.set()
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, EngineDied) and "illegal memory access" in str(outcome)

    asyncio.run(asyncio.wait_for(all_fail(), 300))
    with pytest.raises(EngineDied, match="has stopped"):
        engine.check()


def test_an_engine_that_fails_while_it_ends_is_a_line_in_the_log(
    stuck: tuple[Stuck, Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner, engine = stuck
    unhandled: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)

    def shutdown() -> None:
        raise ValueError("Invalid process group specified")

    inner.engine_core.shutdown = shutdown
    for _ in range(2):
        engine.close()
    assert unhandled == []
    assert [record.message for record in caplog.records] == ["vLLM did not end in order"]
    with pytest.raises(EngineDied, match="closed"):
        engine.check()


def test_an_engine_that_cannot_open_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, ended = Stuck(), list[bool]()
    inner.engine_core.shutdown = lambda: ended.append(True)

    def refused(_: Any) -> torch.Tensor:
        raise RuntimeError("no memory is left for the embeddings")

    monkeypatch.setattr(run, "start", lambda options: inner)
    monkeypatch.setattr(run, "imported", lambda _: None)
    monkeypatch.setattr(run, "embedding_table", refused)
    with pytest.raises(RuntimeError, match="no memory is left"):
        Engine(options=None, end_token=0)  # type: ignore[arg-type]
    assert ended == [True]
