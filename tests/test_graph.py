"""The checked line of stages, on toy stages: what it refuses, hands over, drops, passes by and stops."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.errors import GraphError
from gemel_ray.graph import Graph, run_in_process
from gemel_ray.segments import SegmentOptions
from gemel_ray.stage import Segment, Stage, Work, answer, arrays
from tests.imports import PACKAGE

Rows = list[dict[str, Any]]
Answer = pa.Table | Any
TEXT, INT = pa.string(), pa.int64()
VECTOR = pa.list_(pa.float32())
ITEM = pa.struct([("item_id", TEXT), ("item", TEXT), ("error", TEXT)])
SOURCE = pa.schema([("document", TEXT), ("text", TEXT), ("picture", TEXT), ("error", TEXT)])
RESULT = pa.schema(
    [(name, TEXT) for name in ("document", "item_id", "label", "status", "error", "fingerprint")]
)
NO_WORKSPACE = cast(Any, None)  # toy stages look into none


class Doing(Work):
    """A toy stage at work: a function of its input table, and what it was given."""

    def __init__(self, function: Callable[[pa.Table], Answer], log: list[pa.Table]) -> None:
        self.function, self.log = function, log

    def __call__(self, batch: pa.Table) -> Answer:
        self.log.append(batch)
        return self.function(batch)


class Waiting(Doing):
    waits = True

    async def __call__(self, batch: pa.Table) -> Answer:
        self.log.append(batch)
        await asyncio.sleep(0)
        made = self.function(batch)
        return await made if asyncio.iscoroutine(made) else made


def stage(
    name: str,
    reads: Sequence[str],
    writes: Sequence[tuple[str, pa.DataType]],
    function: Callable[[pa.Table], Answer] | None = None,
    *,
    explodes: Sequence[str] = (),
    work: type[Doing] = Doing,
) -> Any:
    """A stage of the given promises. What it was handed stands in its `log`."""

    @dataclass(frozen=True, kw_only=True)
    class Toy(Stage):
        log: ClassVar[list[pa.Table]] = []

        def start(self, workspace: Any, line: Any = ()) -> Work:
            return work(function or nulls, self.log)

    schema = pa.schema(writes)

    def nulls(batch: pa.Table) -> pa.Table:
        return answer(schema, {f.name: [None] * len(batch) for f in schema})

    Toy.reads, Toy.writes, Toy.explodes, Toy.__name__ = tuple(reads), schema, tuple(explodes), name
    return Toy()


def by_row(
    schema: Sequence[tuple[str, pa.DataType]], function: Callable[..., Any], *, status: bool = False
) -> Callable[[pa.Table], pa.Table]:
    """A stage's function from one of a row: it returns the columns, `error` and `status` among them."""

    def whole(batch: pa.Table) -> pa.Table:
        rows = [function(**row) for row in batch.to_pylist()]
        columns = {name: [row.get(name) for row in rows] for name, _ in schema}
        made = answer(pa.schema(schema), columns, [row.get("error") for row in rows])
        if status:
            made = made.append_column("status", pa.array([row.get("status") for row in rows], TEXT))
        return made

    return whole


def find(text: str) -> dict[str, Any]:
    """Items of a text: its words; one that starts with ! is in error, and a text of ? cannot be done."""
    if text == "?":
        return {"error": "find cannot read this"}
    words = text.split()
    bad = ["this word is bad" if w.startswith("!") else None for w in words]
    return {
        "items": [
            {"item_id": str(i), "item": None if why else w, "error": why}
            for i, (w, why) in enumerate(zip(words, bad, strict=True))
        ]
    }


def see(picture: str | None, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A failed document has null where others have vectors; a document without items has empty lists."""
    if picture == "broken":
        return {"error": "the picture is broken"}
    vectors = [[float(len(i["item"] or "")), 1.0] for i in items]
    return {"picture_vector": [1.0] if picture else None, "item_vectors": vectors}


def near(
    text: str, item: str, item_vector: list[float], picture_vector: list[float] | None
) -> dict[str, Any]:
    assert item_vector == [float(len(item)), 1.0], "another row's vector"
    assert item in text.split(), "another row's text"
    return {"shots": [len(item)], "seen": picture_vector is not None}


def name(item: str, prompt: str) -> dict[str, Any]:
    if item == "long":
        return {"error": "too long"}
    if item == "nobody":
        return {"status": "nil"}
    return {"label": prompt, "status": "linked"}


FIND = [("items", pa.list_(ITEM))]
SEE = [("picture_vector", VECTOR), ("item_vectors", pa.list_(VECTOR))]
NEAR = [("shots", pa.list_(pa.int32())), ("seen", pa.bool_())]
PUT = [("prompt", TEXT)]
NAME = [("label", TEXT)]


def line(**changed: Any) -> Graph:
    """Five toy stages in the shape of the five real ones, the last one waiting instead of computing."""
    stages = {
        "find": stage("Find", ["text"], FIND, by_row(FIND, find)),
        "see": stage("See", ["picture", "items"], SEE, by_row(SEE, see)),
        "near": stage(
            "Near", ["text", "item", "item_vector", "picture_vector"], NEAR, by_row(NEAR, near),
            explodes=["items", "item_vectors"],
        ),
        "put": stage(
            "Put", ["item", "shots", "seen"], PUT,
            by_row(PUT, lambda item, shots, seen: {"prompt": f"{item}{shots[0]}{'+' if seen else '-'}"}),
        ),
        "name": stage(
            "Name", ["item", "prompt"], NAME, by_row(NAME, name, status=True), work=Waiting
        ),
    }  # fmt: skip
    return Graph(tuple({**stages, **changed}.values()), SOURCE, RESULT, "f00d")


ORDER = ["find", "see", "near", "put", "name"]


def documents(*rows: tuple[str | None, str | None] | tuple[str | None, str | None, str]) -> pa.Table:
    """(text, picture) or (text, picture, error) of each document."""
    made = [
        {"document": f"d{i}", "text": t, "picture": p, "error": e[0] if e else None}
        for i, (t, p, *e) in enumerate(rows)
    ]
    return pa.Table.from_pylist(made, SOURCE)


def run(graph: Graph, table: pa.Table, cuts: Sequence[int] = (), batch: int | None = None) -> Rows:
    """The graph cut into segments before the stages numbered `cuts`; `batch` rows at once in each."""
    names, parts = graph.names, [table]
    for start, stop in zip([0, *cuts], [*cuts, len(names)], strict=True):
        segment = graph.segment(names[start:stop], NO_WORKSPACE)
        whole = pa.concat_tables(parts)
        size = batch or max(len(whole), 1)
        slices = [whole.slice(i, size) for i in range(0, max(len(whole), 1), size)]
        parts = [asyncio.run(segment.run(part)) for part in slices]
    return cast(Rows, pa.concat_tables(parts).to_pylist())


EVERYTHING = documents(
    ("one two three", "p"),  # several
    ("", "p"),  # none: nil
    ("alone", None),
    (None, None, "line 4 is not JSON"),  # failed before the graph
    ("?", "p"),  # fails in the first stage
    ("a !b long nobody c", "p"),  # good and bad among its items
    ("x y", "broken"),  # fails in the second stage, with its items known
    ("", "broken"),
    ("!bad", None),
    ("last", "p"),
)


REACHED = ["one", "two", "three", "alone", "a", "long", "nobody", "c", "last"]  # the stages behind See


def expected() -> Rows:
    """EVERYTHING's links, by hand."""
    said: list[tuple[str, str | None, str | None, str, str | None]] = [
        ("d0", "0", "one3+", "linked", None), ("d0", "1", "two3+", "linked", None),
        ("d0", "2", "three5+", "linked", None),
        ("d1", None, None, "nil", None),
        ("d2", "0", "alone5-", "linked", None),
        ("d3", None, None, "error", "line 4 is not JSON"),
        ("d4", None, None, "error", "find cannot read this"),
        ("d5", "0", "a1+", "linked", None), ("d5", "1", None, "error", "this word is bad"),
        ("d5", "2", None, "error", "too long"), ("d5", "3", None, "nil", None),
        ("d5", "4", "c1+", "linked", None),
        ("d6", "0", None, "error", "the picture is broken"),
        ("d6", "1", None, "error", "the picture is broken"),
        ("d7", None, None, "error", "the picture is broken"),
        ("d8", "0", None, "error", "this word is bad"),
        ("d9", "0", "last4+", "linked", None),
    ]  # fmt: skip
    return [dict(zip(RESULT.names, (*row, "f00d"), strict=True)) for row in said]


# When it is built


def test_lists_are_read_as_arrays_whatever_their_chunks() -> None:
    column = pa.chunked_array([[[9], [1, 2], None, []], [[3]]], pa.list_(pa.int32())).slice(1)
    assert [None if a is None else a.tolist() for a in arrays(column)] == [[1, 2], None, [], [3]]


def test_a_stage_before_what_it_reads_is_refused() -> None:
    one, two = stage("One", ["text"], [("a", TEXT)]), stage("Two", ["a"], [("b", TEXT)])
    result = pa.schema([("b", TEXT)])
    Graph((one, two), SOURCE, result, "")
    with pytest.raises(GraphError, match=r"stage two reads a, which no earlier stage writes .*\btext\b"):
        Graph((two, one), SOURCE, result, "")


@pytest.mark.parametrize("order", [o for i in range(4) for o in [[*range(i), i + 1, i, *range(i + 2, 5)]]])
def test_every_swap_of_two_neighbours_is_refused(order: list[int]) -> None:
    stages = line().stages
    with pytest.raises(GraphError):
        Graph(tuple(stages[i] for i in order), SOURCE, RESULT, "")


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_stage_is_refused(missing: int) -> None:
    stages = [s for i, s in enumerate(line().stages) if i != missing]
    with pytest.raises(GraphError):
        Graph(tuple(stages), SOURCE, RESULT, "")


def test_what_is_read_must_not_have_been_exploded_before() -> None:
    late = stage("Late", ["items"], [("late", TEXT)])
    with pytest.raises(GraphError, match="stage late reads items"):
        Graph((*line().stages, late), SOURCE, RESULT, "")


def test_a_stage_explodes_only_what_is_there() -> None:
    with pytest.raises(GraphError, match="items"):
        Graph((stage("Near", ["item"], [("a", TEXT)], explodes=["items"]),), SOURCE, pa.schema([]), "")


@pytest.mark.parametrize("column", ["text", "a"])
def test_a_column_written_twice_is_refused(column: str) -> None:
    stages = stage("One", ["text"], [("a", TEXT)]), stage("Two", ["text"], [(column, TEXT)])
    with pytest.raises(GraphError, match=rf"stage two writes {column}, which is there already"):
        Graph(stages, SOURCE, pa.schema([]), "")


@pytest.mark.parametrize("column", ["error", "status", "fingerprint"])
def test_the_graph_s_own_columns_are_not_a_stage_s_to_write(column: str) -> None:
    with pytest.raises(GraphError, match=rf"stage one writes {column}, which is there already"):
        Graph((stage("One", ["text"], [(column, TEXT)]),), SOURCE, pa.schema([]), "")


def test_a_column_that_exploding_makes_is_not_written_again() -> None:
    with pytest.raises(GraphError, match=r"stage near writes item\b"):
        line(near=stage("Near", ["item"], [("item", TEXT)], explodes=["items", "item_vectors"]))


def test_exploding_makes_no_column_that_is_there() -> None:
    inner = pa.struct([("text", TEXT), ("n", INT)])  # text is a document's, too
    stages = (
        stage("One", ["text"], [("parts", pa.list_(inner))]),
        stage("Two", ["n"], [("label", TEXT)], explodes=["parts"]),
    )
    with pytest.raises(GraphError, match="text"):
        Graph(stages, SOURCE, pa.schema([("text", TEXT), ("label", TEXT)]), "")


def test_a_result_that_nobody_writes_is_refused() -> None:
    with pytest.raises(GraphError, match="no stage writes label, item_id, which the result needs"):
        Graph((), SOURCE, pa.schema([("document", TEXT), ("label", TEXT), ("item_id", TEXT)]), "")


@pytest.mark.parametrize("names", [["find", "near"], ["see", "find"], ["find", "find"], ["name", "find"]])
def test_a_segment_of_stages_that_do_not_follow_is_refused(names: list[str]) -> None:
    with pytest.raises(GraphError, match="adjacent"):
        line().segment(names, NO_WORKSPACE)


@pytest.mark.parametrize("names", [["fnid"], []])
def test_a_segment_of_no_stage_is_refused(names: list[str]) -> None:
    with pytest.raises(GraphError):
        line().segment(names, NO_WORKSPACE)


# While it runs


def test_rows_of_every_kind_in_one_batch_are_each_answered_rightly() -> None:
    assert run(line(), EVERYTHING) == expected()


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("cuts", [c for n in range(5) for c in combinations(range(1, 5), n)], ids=str)
def test_every_cut_into_segments_gives_the_same(cuts: tuple[int, ...], batch: int | None) -> None:
    assert run(line(), EVERYTHING, cuts, batch) == expected()


words = st.sampled_from(["a", "bb", "!c", "long", "nobody", "dddd"])
texts = st.one_of(st.none(), st.just("?"), st.lists(words, max_size=4).map(" ".join))
pictures = st.sampled_from([None, "p", "broken"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(texts, pictures), max_size=8), st.sets(st.integers(1, 4)), st.integers(1, 4))
def test_neighbours_and_cuts_never_change_a_row(rows: list[Any], cuts: set[int], batch: int) -> None:
    table = documents(*((t, p) if t is not None else (t, p, "unreadable") for t, p in rows))
    alone = [r for i in range(len(table)) for r in run(line(), table.slice(i, 1))]
    assert run(line(), table, sorted(cuts), batch) == alone
    assert {r["document"] for r in alone} == set(table["document"].to_pylist())
    assert all((r["status"] == "error") == (r["error"] is not None) for r in alone)
    assert {r["status"] for r in alone} <= {"linked", "nil", "error"}


def test_a_line_runs_on_no_rows_at_all() -> None:
    assert run(line(), EVERYTHING.slice(0, 0)) == []
    assert run(line(), EVERYTHING.slice(0, 0), [2, 3]) == []


def test_the_result_has_exactly_its_schema() -> None:
    segment = line().segment(ORDER, NO_WORKSPACE)
    assert asyncio.run(segment.run(EVERYTHING)).schema == RESULT


def test_columns_are_dropped_after_their_last_reader() -> None:
    def after(stop: int) -> set[str]:
        segment = line().segment(ORDER[:stop], NO_WORKSPACE)
        return set(asyncio.run(segment.run(EVERYTHING)).column_names)

    always = {"document", "status", "error"}
    assert after(1) == always | {"text", "picture", "items"}
    assert after(2) == always | {"text", "items", "picture_vector", "item_vectors"}
    assert after(3) == always | {"item_id", "item", "shots", "seen"}
    assert after(4) == always | {"item_id", "item", "prompt"}


def test_a_stage_is_handed_what_it_reads_and_rows_that_are_under_way() -> None:
    graph = line()
    run(graph, EVERYTHING)
    given = {s.name: s.log for s in cast(Any, graph.stages)}
    assert {name: log[0].column_names for name, log in given.items()} == {
        s.name: list(s.reads) for s in graph.stages
    }
    assert [t["text"].to_pylist() for t in given["find"]] == [
        [t for t in EVERYTHING["text"].to_pylist() if t is not None]
    ]
    assert len(given["see"][0]) == 8
    assert given["near"][0]["item"].to_pylist() == REACHED
    assert given["name"][0]["item"].to_pylist() == REACHED


def test_a_stage_without_rows_is_not_called() -> None:
    graph = line()
    assert {r["status"] for r in run(graph, documents(("?", None), (None, None, "no")))} == {"error"}
    assert [len(s.log) for s in cast(Any, graph.stages)] == [1, 0, 0, 0, 0]


def test_the_first_reason_stays() -> None:
    graph = line(name=stage("Name", ["item", "prompt"], NAME, by_row(NAME, lambda **_: {"error": "late"})))
    rows = run(graph, documents(("a !b", None)))
    assert [r["error"] for r in rows] == ["late", "this word is bad"]


def test_a_document_s_reason_stays_before_its_mention_s() -> None:
    rows = run(line(), documents(("x !y", "broken")))
    assert [r["error"] for r in rows] == ["the picture is broken"] * 2


def test_an_error_wins_over_a_status() -> None:
    both = by_row(NAME, lambda **_: {"status": "linked", "error": "no", "label": "x"}, status=True)
    (row,) = run(line(name=stage("Name", ["item", "prompt"], NAME, both)), documents(("a", None)))
    assert (row["status"], row["error"]) == ("error", "no")


def test_a_document_of_a_thousand_items_keeps_their_order() -> None:
    text = " ".join(f"w{i}" for i in range(1000))
    rows = run(line(), documents(("", None), (text, "p"), ("z", None)))
    assert [r["label"] for r in rows[1:-1]] == [f"w{i}{len(f'w{i}')}+" for i in range(1000)]
    assert (rows[0]["status"], rows[-1]["label"]) == ("nil", "z1-")


# Faults of a stage


def lost(batch: pa.Table) -> pa.Table:
    return by_row(PUT, lambda **_: {"prompt": "x"})(batch.slice(1))


def gained(batch: pa.Table) -> pa.Table:
    return by_row(PUT, lambda **_: {"prompt": "x"})(pa.concat_tables([batch, batch.slice(0, 1)]))


def of_type(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda batch: pa.table({"prompt": pa.nulls(len(batch), kind)})


def without(batch: pa.Table) -> pa.Table:
    return pa.table({"other": pa.nulls(len(batch), TEXT)})


@pytest.mark.parametrize(("function", "message"), [
    (lost, "put was given 4 rows and returned 3"), (gained, "put was given 4 rows and returned 5"),
    (of_type(pa.large_string()), "put promised"), (of_type(INT), "put promised"), (without, "put promised"),
])  # fmt: skip
@pytest.mark.parametrize("work", [Doing, Waiting])
def test_a_stage_that_breaks_its_promise_stops_the_run(work: Any, function: Any, message: str) -> None:
    graph = line(put=stage("Put", ["item", "shots", "seen"], PUT, function, work=work))
    with pytest.raises(GraphError, match=message):
        run(graph, documents(("a b", None), ("c d", None)))


def test_half_a_float_is_not_a_float() -> None:
    half = by_row([("a", pa.float16())], lambda **_: {"a": 1.0})
    schema = pa.schema([("a", pa.float32())])
    with pytest.raises(GraphError, match="one promised"):
        run(Graph((stage("One", ["text"], [("a", pa.float32())], half),), SOURCE, schema, ""), EVERYTHING)


@pytest.mark.parametrize("work", [Doing, Waiting])
def test_an_exception_of_a_stage_stops_the_run(work: Any) -> None:
    def broken(batch: pa.Table) -> pa.Table:
        raise ZeroDivisionError("a bug")

    graph = line(put=stage("Put", ["item", "shots", "seen"], PUT, broken, work=work))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(graph, EVERYTHING)
    segment = graph.segment(ORDER, NO_WORKSPACE)
    with pytest.raises(ZeroDivisionError):
        list(run_in_process(segment, iter([EVERYTHING] * 3)))


# Many batches at once


def of_batches(segment: Segment, tables: Sequence[pa.Table], overlap: int) -> list[str]:
    done = run_in_process(segment, iter(tables), overlap)
    return [d for table in done for d in table["document"].to_pylist()]


def test_stages_that_compute_run_beside_those_that_wait() -> None:
    """Batch 0 waits in the async stage for batch 1 to be computing in the sync one, which in turn
    does not end before batch 0 is through: neither may hold up the other."""
    arrived: asyncio.Event | None = None
    loop: asyncio.AbstractEventLoop | None = None
    waiting, through = threading.Event(), threading.Event()

    def compute(batch: pa.Table) -> pa.Table:
        if batch["text"][0].as_py() == "second":
            assert waiting.wait(20), "the first batch did not get as far while this one computed"
            assert arrived is not None
            assert loop is not None
            loop.call_soon_threadsafe(arrived.set)
            assert through.wait(20), "the stage that waits was not served while this one computed"
        return by_row([("a", TEXT)], lambda text: {"a": text})(batch)

    async def wait(batch: pa.Table) -> pa.Table:
        nonlocal arrived, loop
        if batch["a"][0].as_py() == "first":
            arrived, loop = asyncio.Event(), asyncio.get_running_loop()
            waiting.set()
            await asyncio.wait_for(arrived.wait(), 20)
            through.set()
        return by_row([("b", TEXT)], lambda a: {"b": a, "status": "linked"}, status=True)(batch)

    stages = (
        stage("Compute", ["text"], [("a", TEXT)], compute),
        stage("Wait", ["a"], [("b", TEXT)], wait, work=Waiting),
    )
    graph = Graph(stages, SOURCE, pa.schema([("document", TEXT), ("b", TEXT)]), "")
    segment = graph.segment(["compute", "wait"], NO_WORKSPACE)
    tables = [documents(("first", None)), documents(("second", None))]
    done = pa.concat_tables(run_in_process(segment, iter(tables), overlap=2))
    assert done["b"].to_pylist() == ["first", "second"]


@pytest.mark.parametrize("overlap", [1, 2, 7])
def test_batches_come_out_in_order_however_long_they_take(overlap: int) -> None:
    async def slow_first(batch: pa.Table) -> pa.Table:
        await asyncio.sleep(0.02 if batch["text"][0].as_py() == "0" else 0)
        return by_row([("a", TEXT)], lambda text: {"a": text})(batch)

    graph = Graph(
        (stage("Wait", ["text"], [("a", TEXT)], slow_first, work=Waiting),),
        SOURCE, pa.schema([("document", TEXT), ("a", TEXT)]), "",
    )  # fmt: skip
    tables = [
        documents((str(i), None)).set_column(0, "document", pa.array([f"d{i}"])).cast(SOURCE)
        for i in range(6)
    ]
    assert of_batches(graph.segment(["wait"], NO_WORKSPACE), tables, overlap) == [f"d{i}" for i in range(6)]


def test_no_more_batches_are_read_than_may_be_under_way() -> None:
    read = 0

    def source() -> Iterator[pa.Table]:
        nonlocal read
        for _ in range(10):
            read += 1
            yield EVERYTHING

    results = run_in_process(line().segment(ORDER, NO_WORKSPACE), source(), overlap=3)
    next(results)
    assert read == 3


def test_what_is_measured_adds_up() -> None:
    segment = line().segment(ORDER, NO_WORKSPACE)
    list(run_in_process(segment, iter([EVERYTHING, EVERYTHING])))
    measured = segment.measures()
    assert measured["rows"] == {"find": 18, "see": 16, "near": 18, "put": 18, "name": 18}
    assert measured["seconds"].keys() == measured["rows"].keys()
    assert all(seconds > 0 for seconds in measured["seconds"].values())


def test_processor_time_is_that_of_the_stage_that_used_it() -> None:
    """A stage that computes is measured by its thread; one that waits has what else its process used."""

    def busy(seconds: float, column: str, **more: str) -> Callable[[pa.Table], pa.Table]:
        def work(batch: pa.Table) -> pa.Table:
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                pass
            return by_row([(column, TEXT)], lambda **_: {column: "x", **more}, status=bool(more))(batch)

        return work

    stages = (
        stage("Compute", ["text"], [("a", TEXT)], busy(0.05, "a")),
        stage("Wait", ["a"], [("b", TEXT)], busy(0.1, "b", status="linked"), work=Waiting),
    )
    graph = Graph(stages, SOURCE, pa.schema([("b", TEXT)]), "")
    segment = graph.segment(["compute", "wait"], NO_WORKSPACE)
    assert segment.measures()["processor"] == {}
    began = time.process_time()
    asyncio.run(segment.run(documents(("a word", None))))
    used, spent = segment.measures()["processor"], time.process_time() - began
    assert used["compute"] >= 0.05
    assert 0.1 <= used["wait"] <= spent - used["compute"]
    alone = graph.segment(["compute"], NO_WORKSPACE)
    asyncio.run(alone.run(documents(("a word", None))))
    assert alone.measures()["processor"].keys() == {"compute", "rest"}


def test_stages_are_closed_last_first() -> None:
    closed: list[str] = []

    def closing(name: str) -> type[Doing]:
        class Closing(Doing):
            def close(self) -> None:
                closed.append(name)

        return Closing

    one = stage("One", ["text"], [("a", TEXT)], work=closing("one"))
    two = stage("Two", ["text"], [("b", TEXT)], work=closing("two"))
    Graph((one, two), SOURCE, pa.schema([]), "").segment(["one", "two"], NO_WORKSPACE).close()
    assert closed == ["two", "one"]


def test_a_stage_that_was_started_elsewhere_is_taken_as_it_is_and_not_closed() -> None:
    closed: list[str] = []

    class Lent(Doing):
        def close(self) -> None:
            closed.append("lent")

    one, two = stage("one", ["text"], [("a", TEXT)]), stage("two", ["a"], [("b", TEXT)])
    lent = Lent(lambda batch: batch, [])
    graph = Graph((one, two), SOURCE, pa.schema([("b", TEXT)]), "")
    segment = graph.segment(["one", "two"], NO_WORKSPACE, {"one": lent})
    assert segment.steps[0].work is lent
    segment.close()
    assert closed == []


def test_a_segment_is_closed_once() -> None:
    closed: list[str] = []

    class Closing(Doing):
        def close(self) -> None:
            closed.append("closed")

    one = stage("one", ["text"], [("a", TEXT)], work=Closing)
    segment = Graph((one,), SOURCE, pa.schema([]), "").segment(["one"], NO_WORKSPACE)
    segment.close()
    segment.close()
    assert closed == ["closed"]


def test_a_stage_that_waits_and_does_not_say_so_is_refused() -> None:
    class Forgetful(Waiting):
        waits = False

    one = stage("one", ["text"], [("a", TEXT)], work=Forgetful)
    segment = Graph((one,), SOURCE, pa.schema([]), "").segment(["one"], NO_WORKSPACE)
    with pytest.raises(GraphError, match=r"stage one waits: its Forgetful must say `waits = True`"):
        asyncio.run(segment.run(documents(("a word", None))))


def test_a_stage_s_own_measures_stand_under_its_name() -> None:
    class Counting(Doing):
        def measures(self) -> dict[str, Any]:
            return {"images": 3}

    graph = line(see=stage("See", ["picture", "items"], SEE, by_row(SEE, see), work=Counting))
    segment = graph.segment(ORDER, NO_WORKSPACE)
    asyncio.run(segment.run(EVERYTHING))
    assert segment.measures()["see"] == {"images": 3}


SIXTH = """
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from gemel_ray.setting import setting
from gemel_ray.stage import Stage, Work, answer


@dataclass(frozen=True, kw_only=True)
class Year(Stage):
    reads: ClassVar = ("text",)
    writes: ClassVar = pa.schema([pa.field("year", pa.int32())])
    earliest: int = setting(1800, "numbers below are not taken for years", at_least=0)

    def start(self, workspace: Any, line: Any = ()) -> Work:
        return Finding(self)


class Finding(Work):
    def __init__(self, stage: Year) -> None:
        self.stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        found = [[int(n) for n in re.findall(r"[0-9]{4}", text)] for text in batch["text"].to_pylist()]
        years = [f[0] if f and f[0] >= self.stage.earliest else None for f in found]
        return answer(self.stage.writes, {"year": years})
"""
ASKED = """
import asyncio, json, pyarrow as pa
from types import SimpleNamespace
from gemel_ray.config import load
from gemel_ray.linking import linking_graph
from gemel_ray.records import DOCUMENT

knowledge = SimpleNamespace(version="v", knowledge="0")
config, late = load(None, {}, []), load(None, {}, ["year.earliest=1990"])
found = {}
for name, asked in (("early", config), ("late", late)):
    segment = linking_graph(asked, knowledge).segment(["year"], knowledge)
    row = dict.fromkeys(DOCUMENT.names) | {"text": "Adobe in 1982."}
    # The column is dropped where no later stage reads it: what the work itself writes is looked at.
    table = pa.Table.from_pylist([row], DOCUMENT).select(["text"])
    found[name] = segment.steps[0].work(table)["year"].to_pylist()
found["segments"] = [list(s.stages) for s in (*config.offline.segments, *config.online.segments)]
found["names"] = linking_graph(config, knowledge).names
found["apart"] = config.fingerprint("v") != late.fingerprint("v")
print(json.dumps(found))
"""


def test_a_sixth_stage_is_one_file_and_one_line(tmp_path: Path) -> None:
    """As docs/adding_a_stage.md says: in a copy of the package, which it is added to."""
    package = tmp_path / "gemel_ray"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (package / "stages" / "year.py").write_text(SIXTH)
    config = package / "config.py"
    before, here, after = config.read_text().partition("    retrieve: Retrieve = section(")
    line = '    year: Year = section(Year, "The year that a text names.")\n'
    imported = "from gemel_ray.stages.year import Year\n@dataclass(frozen=True, kw_only=True)\nclass Config:"
    before = before.replace("@dataclass(frozen=True, kw_only=True)\nclass Config:", imported)
    config.write_text(before + line + here + after)
    made = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    order = ["detect", "encode", "year", "retrieve", "assemble", "generate"]
    assert json.loads(made.stdout) == {
        "early": [1982], "late": [None], "segments": [order, order], "names": order, "apart": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([("find", "see"), ("near", "put", "name")], None),
        ([("find",), ("near", "put", "name")], "see is missing"),
        ([(*["find", "see", "near", "put", "name"],), ()], r"segments\[1\] has no stages"),
        ([("find", "see", "near", "put", "nam")], "did you mean name"),
    ],
)
def test_a_line_is_cut_into_segments_that_hold_all_of_it(
    cuts: list[tuple[str, ...]], message: str | None
) -> None:
    segments = [SegmentOptions(stages=names) for names in cuts]
    if message:
        with pytest.raises(GraphError, match=message):
            line().cut(segments)
        return
    assert [(s.stages, whole) for s, whole in line().cut(segments)] == [(cuts[0], True), (cuts[1], True)]


def test_a_segment_that_begins_behind_what_multiplies_rows_is_not_given_whole_documents() -> None:
    segments = [SegmentOptions(stages=names) for names in (("find", "see", "near"), ("put",), ("name",))]
    assert [whole for _, whole in line().cut(segments)] == [True, False, False]
