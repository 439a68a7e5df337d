"""Several API processes of one endpoint: what they share, and what they tell together."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pyarrow as pa
import pytest
from live import soon
from serving_cases import echoed, endpoint

from gemel_ray.config import ConfigError, load
from gemel_ray.readers.mentions import mention
from gemel_ray.records import DOCUMENT
from gemel_ray.segments import ApiOptions, Online
from gemel_ray.serving import peers
from gemel_ray.serving.app import create
from gemel_ray.serving.linker import Reply, WorkerLost
from gemel_ray.serving.meters import mentions
from gemel_ray.serving.peers import Peers, merged
from gemel_ray.serving.readiness import tiny

LIMITS = Online(queue=40, documents=16, api=ApiOptions(max_replicas=2))


def together(folder: Path, *names: str) -> dict[str, Peers]:
    """Processes that all answer each other."""
    there: dict[str, Peers] = {}

    async def ask(method: str) -> list[object]:
        return [True if method == "alive" else peer.counts() for peer in there.values()]

    for name in names:
        there[name] = Peers(name, endpoint(folder / name, echoed, LIMITS).desk, ask)
    return there


def test_the_queue_is_shared_by_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_EVERY", 0.01)

    async def run() -> None:
        there = together(tmp_path, "one", "two")
        one = there["one"]
        alone = one.desk._room()
        await one.start()
        await soon(lambda: (one.desk.queue, one.desk._room()) == (20, alone / 2))
        del there["two"]
        await soon(lambda: (one.desk.queue, one.desk._room()) == (40, alone))
        for number in range(4):  # more than were to be: a request of the greatest size is still taken
            there[f"more {number}"] = one
        await soon(lambda: one.desk.queue == LIMITS.documents)

    asyncio.run(run())


def test_more_processes_than_the_queue_has_requests_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"online\.documents times online\.api\.max_replicas"):
        load(None, {}, ["online.api.max_replicas=3"])


def test_each_tells_the_counts_of_all_under_their_names(tmp_path: Path) -> None:
    async def run() -> None:
        there = together(tmp_path, "one", "two")
        there["one"].desk.meters.replied(await echoed(tiny()))
        for _ in range(2):
            there["two"].desk.meters.replied(await echoed(tiny()))
        for peer in there.values():
            lines = (await peer.text()).decode().splitlines()
            assert 'gemel_ray_links_total{process="one",status="nil"} 1.0' in lines
            assert 'gemel_ray_links_total{process="two",status="nil"} 2.0' in lines
            assert lines.count("# TYPE gemel_ray_links_total counter") == 1

    asyncio.run(run())


def test_whoever_answers_nothing_leaves_the_others_their_counts(tmp_path: Path) -> None:
    async def run() -> None:
        one = together(tmp_path, "one")["one"]

        async def nobody(method: str) -> list[object]:
            raise TimeoutError(method)

        one.ask = nobody
        assert b'gemel_ray_queue{process="one"}' in await one.text()

    asyncio.run(run())


def test_merged_counts_can_be_read_by_prometheus(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    there = together(tmp_path, "one", "two")
    read = list(text_string_to_metric_families(merged(p.counts() for p in there.values()).decode()))
    queue = next(family for family in read if family.name == "gemel_ray_queue")
    assert [sample.labels["process"] for sample in queue.samples] == ["one", "two"]


def test_a_process_that_joins_is_ready_before_its_first_request_and_knows_what_answers(
    tmp_path: Path,
) -> None:
    loaded = asyncio.Event()

    async def loading(table: pa.Table) -> Reply:
        if not loaded.is_set():
            raise WorkerLost("the models are being loaded")
        reply = await echoed(table)
        reply.knowledge = "newer"
        return reply

    async def run() -> None:
        async def ask(method: str) -> list[object]:
            return [True]

        served = endpoint(tmp_path, loading, LIMITS)
        served.desk.readiness.down = "the models are being loaded"
        served.desk.wait = 5.0
        joining = asyncio.create_task(Peers("one", served.desk, ask).start())
        await asyncio.sleep(0.2)
        assert not joining.done()
        loaded.set()
        await asyncio.wait_for(joining, 100)
        assert served.desk.readiness.down is None
        assert served.desk.known["knowledge"] == "newer"

    asyncio.run(run())


def test_the_first_process_of_all_does_not_wait_for_the_models(tmp_path: Path) -> None:
    async def never(table: pa.Table) -> Reply:
        raise WorkerLost("the models are being loaded")

    async def run() -> None:
        async def ask(method: str) -> list[object]:
            return [True]

        served = endpoint(tmp_path, never, LIMITS)
        served.desk.wait = 0.3
        peer = Peers("one", served.desk, ask)
        await asyncio.wait_for(peer.start(), 100)
        assert served.desk.readiness.down is not None

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())


def test_the_app_tells_the_counts_of_all(tmp_path: Path) -> None:
    from dataclasses import replace

    from serving_cases import client

    async def run() -> None:
        there = together(tmp_path, "one", "two")
        served = replace(endpoint(tmp_path / "app", echoed, LIMITS), peers=there["one"])
        assert create(served)
        async with client(served) as http:
            told = (await http.get("/metrics")).text
        assert 'process="one"' in told and 'process="two"' in told

    asyncio.run(run())


def document(**fields: object) -> pa.Table:
    return pa.Table.from_pylist([{name: None for name in DOCUMENT.names} | fields], DOCUMENT)


def test_mentions_are_counted_wherever_in_the_line_a_document_is() -> None:
    text = "Adobe and Google met in Paris."
    given = [mention({"start": n, "end": n + 5}, text) for n in (0, 10, 24)]
    assert mentions(document(text=text, given=given)) == 3
    assert mentions(document(text=text, given=[])) == 1
    assert mentions(document(text="x" * 400)) == 11  # they are not looked for here
    assert mentions(document(text=None)) == 1
    found = document(text="x" * 400)
    assert mentions(found.append_column("mentions", pa.array([given[:2]]))) == 2
    assert mentions(pa.table({"mention": ["Adobe", "Google"], "text": ["", ""]})) == 2
