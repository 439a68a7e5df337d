"""A segment fed by many callers: what computes takes who has gathered, what waits is given each at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pyarrow as pa
import pytest

from gemel_ray.graph import Graph
from gemel_ray.serving.running import Running
from gemel_ray.stage import Stage, Work, answer

TEXT = pa.string()
WORD = pa.struct([("word", TEXT), ("error", TEXT)])
SOURCE = pa.schema([("document_id", TEXT), ("text", TEXT), ("error", TEXT)])
RESULT = pa.schema([(n, TEXT) for n in ("document_id", "said", "status", "error", "fingerprint")])


@dataclass
class _Splitting(Work):
    """Words of texts. Waits for `go`; a text with a bomb in it breaks the stage."""

    passes: list[list[str]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = batch["text"].to_pylist()
        self.passes.append(texts)
        assert self.go.wait(100)
        if any("bomb" in text for text in texts):
            raise RuntimeError("the stage's own fault")
        words = [[{"word": w, "error": None} for w in t.split()] for t in texts]
        return answer(Split.writes, {"words": words})


@dataclass
class _Saying(Work):
    waits = True
    under_way: int = 0
    most: int = 0
    alive: bool = True
    pause: float = 0.01

    async def __call__(self, batch: pa.Table) -> pa.Table:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.pause)
        self.under_way -= 1
        said = [word.upper() for word in batch["word"].to_pylist()]
        made = answer(Say.writes, {"said": said}, [None] * len(said))
        return made.append_column("status", pa.array(["linked"] * len(said), TEXT))

    def check(self) -> None:
        if not self.alive:
            raise RuntimeError("dead")


class Split(Stage):
    reads: ClassVar = ("text",)
    writes: ClassVar = pa.schema([("words", pa.list_(WORD))])

    def start(self, workspace: Any, line: Any = ()) -> Work:
        return _Splitting()


class Say(Stage):
    explodes: ClassVar = ("words",)
    reads: ClassVar = ("word",)
    writes: ClassVar = pa.schema([("said", TEXT)])

    def start(self, workspace: Any, line: Any = ()) -> Work:
        return _Saying()


@pytest.fixture
def running() -> Running:
    graph = Graph((Split(), Say()), SOURCE, RESULT, "print")
    return Running(graph.segment(["split", "say"], cast(Any, None)), batch=3)


def works(running: Running) -> tuple[_Splitting, _Saying]:
    first, last = (step.work for step in running.segment.steps)
    assert isinstance(first, _Splitting)
    assert isinstance(last, _Saying)
    return first, last


def document(name: str, text: str) -> pa.Table:
    return pa.Table.from_pylist([{"document_id": name, "text": text, "error": None}], SOURCE)


async def gathered(running: Running, texts: list[str], then: Callable[[Any], None]) -> list[Any]:
    """All texts at once, of documents of the same name; `then` is called when the first are in their pass."""
    tasks = [asyncio.create_task(running.run(document("same", text))) for text in texts]
    await asyncio.sleep(0.05)
    then(tasks)
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_those_who_wait_go_together_and_come_back_apart(running: Running) -> None:
    split, say = works(running)
    say.pause = 0.5
    texts = ["a b", "c", "d e f", "", "g", "h", "i j", "k"]
    outcomes = asyncio.run(gathered(running, texts, lambda _: split.go.set()))
    for text, (rows, seconds) in zip(texts, outcomes, strict=True):
        assert rows.schema == RESULT
        assert set(rows["document_id"].to_pylist()) == {"same"}
        assert [s for s in rows["said"].to_pylist() if s] == text.upper().split()
        assert seconds.keys() == {"split", "say"}
    assert max(len(p) for p in split.passes) == 3
    assert [text for one in split.passes for text in one] == texts
    assert say.most > 3  # not held back to a batch's slowest


def test_a_lone_document_waits_for_nobody(running: Running) -> None:
    split, _ = works(running)
    split.go.set()
    rows, _ = asyncio.run(running.run(document("one", "a")))
    assert (rows["said"].to_pylist(), split.passes) == (["A"], [["a"]])


def test_the_engine_s_counts_are_told_once(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of several API processes had the reply: they only add."""
    counts = iter([(10, 4), (10, 4), (30, 14)])

    def measured() -> dict[str, Any]:
        asked, cached = next(counts)
        return {"generate": {"asked": asked, "cached": cached, "steps": 7}}

    monkeypatch.setattr(type(running.segment), "measures", lambda _: measured())
    assert running.counted() == {"asked": 10, "cached": 4}
    assert running.counted() == {}
    assert running.counted() == {"asked": 20, "cached": 10}


def test_who_comes_while_all_passes_end_is_served_as_well() -> None:
    graph = Graph((Split(), Say()), SOURCE, RESULT, "print")
    segment = graph.segment(["split"], cast(Any, None))
    running, (split,) = Running(segment, batch=3), [cast(_Splitting, step.work) for step in segment.steps]

    async def twice() -> None:
        for text in ("a", "c"):
            await running.run(document("one", text))

    async def scene() -> None:
        first = asyncio.create_task(twice())
        await asyncio.sleep(0.05)
        second = asyncio.create_task(running.run(document("other", "b")))
        await asyncio.sleep(0.05)
        split.go.set()
        time.sleep(0.2)  # meanwhile both passes are done, so that the loop hears of them in one turn
        await asyncio.wait_for(asyncio.gather(first, second), 100)

    asyncio.run(scene())
    assert split.passes == [["a"], ["b"], ["c"]]


def test_one_document_s_fault_is_not_its_neighbours(running: Running) -> None:
    split, _ = works(running)
    outcomes = asyncio.run(gathered(running, ["x", "y", "a", "bomb", "b"], lambda _: split.go.set()))
    failed = [isinstance(outcome, RuntimeError) for outcome in outcomes]
    assert failed == [False, False, False, True, False]


def test_who_leaves_while_waiting_is_left_out(running: Running) -> None:
    split, _ = works(running)

    def leave(tasks: list[asyncio.Task[Any]]) -> None:
        tasks[-1].cancel()
        split.go.set()

    texts = [*"abcdefg", "left"]
    outcomes = asyncio.run(gathered(running, texts, leave))
    assert isinstance(outcomes[-1], asyncio.CancelledError)
    assert not any("left" in one for one in split.passes)


def test_a_stage_that_is_dead_is_told(running: Running) -> None:
    running.check()
    works(running)[1].alive = False
    with pytest.raises(RuntimeError, match="dead"):
        running.check()
