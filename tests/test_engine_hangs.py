"""An engine that hangs, as one over a GPU that no longer answers: no machine does that on request, so here
the engine is a stand-in whose step ends when the test lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gemel_ray.engine import rollouts, run
from gemel_ray.engine.prompts import Prompt
from gemel_ray.engine.run import Engine, EngineDied
from gemel_ray.engine.usage import Usage
from gemel_ray.engine.vllm_engine import Asked

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
        self.goes_on.wait(60)
        return []


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stuck, Engine]]:
    inner = Stuck()
    monkeypatch.setattr(run, "HUNG", PATIENCE)
    monkeypatch.setattr(run, "start", lambda options: inner)
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
        asked = Asked(tree="nowhere", node=0, limit=2, wide=4, renormalise=True)
        rollout = asyncio.create_task(engine.rollout(prompt, asked, Usage()))
        with pytest.raises(EngineDied, match="hangs"):
            while not rollout.done():
                await asyncio.sleep(0.02)
                engine.check()
        rollout.cancel()

    time.sleep(2 * PATIENCE)
    engine.check()  # nothing to compute is no reason
    asyncio.run(asyncio.wait_for(until_it_says_so(), 30))
    inner.goes_on.set()
    while engine.busy:
        time.sleep(0.02)
    engine.check()
