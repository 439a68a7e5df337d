"""One caller keeps nobody waiting but itself: with mentions by the thousand, uploads that never end, or
pictures from hosts that never answer. Over real sockets, from two addresses of this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from gemel_ray.pictures.limits import ImageError
from gemel_ray.segments import Online
from gemel_ray.serving import requests
from gemel_ray.serving.app import create
from gemel_ray.serving.desk import Turns
from gemel_ray.serving.linker import Linker, Reply
from tests.live import listening
from tests.serving_cases import echoed, endpoint

FLOOD, STRANGER = "127.0.0.2", "127.0.0.3"
HEAD = (
    b"POST /v1/link HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
)
ONE = {"text": "Adobe is here.", "mentions": ["Adobe"]}
LONG = "".join(f"{n:03} " for n in range(50))
FIFTY = {"text": LONG, "mentions": [{"start": 4 * n, "end": 4 * n + 3} for n in range(50)]}


def visitor(url: str, address: str) -> httpx.Client:
    return httpx.Client(
        base_url=url, transport=httpx.HTTPTransport(local_address=address), timeout=400, trust_env=False
    )


@contextmanager
def house(folder: Path, linker: Linker, **limits: Any) -> Iterator[tuple[str, Any]]:
    fetch = limits.pop("fetch", None)
    served = endpoint(folder, linker, Online(**limits), **({"fetch": fetch} if fetch else {}))
    with listening(create(served)) as url:
        yield url, served


@contextmanager
def crowded(folder: Path, linker: Linker, **limits: Any) -> Iterator[tuple[Any, ...]]:
    """What is served, its two callers, and threads for those of them who wait."""
    with (
        house(folder, linker, **limits) as (url, served),
        visitor(url, FLOOD) as flood,
        visitor(url, STRANGER) as stranger,
        ThreadPoolExecutor() as pool,
    ):
        yield served, flood, stranger, pool


def linked(url: str) -> float:
    """Rows that the endpoint has answered."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("gemel_ray_links_total"))


def test_a_flood_of_mentions_is_worked_on_between_other_callers(live_url: str) -> None:
    """The real engine: 40 documents of 50 mentions are asked for; a stranger's one link comes before most."""
    many, lines = {"documents": [FIFTY] * 40}, {"Accept": "application/x-ndjson"}
    with (
        visitor(live_url, FLOOD) as flood,
        visitor(live_url, STRANGER) as stranger,
        flood.stream("POST", "/v1/link", json=many, headers=lines) as answer,
    ):
        next(answer.iter_lines())  # the flood is inside
        before = linked(live_url)
        link = stranger.post("/v1/link", json=ONE)
        assert link.json()["links"][0]["status"] == "linked"
        assert linked(live_url) - before <= 4 * 50


class Counted:
    """A linker that does one document after the other, as they come, and knows in which order; after the
    first, when it may."""

    def __init__(self) -> None:
        self.go, self.one_by_one, self.order = threading.Event(), asyncio.Lock(), list[str]()

    async def __call__(self, table: pa.Table) -> Reply:
        reply = await echoed(table)
        async with self.one_by_one:
            while self.order and not self.go.is_set():
                await asyncio.sleep(0.01)
            self.order += [table["document_id"][0].as_py()] * len(reply.rows)
        return reply


def test_a_newcomer_waits_for_what_is_under_way_and_no_more(tmp_path: Path) -> None:
    linker = Counted()
    with crowded(tmp_path, linker) as (served, flood, stranger, pool):
        rest = pool.submit(flood.post, "/v1/link", json={"documents": [FIFTY] * 64})
        while not linker.order:
            time.sleep(0.01)
        mine = pool.submit(stranger.post, "/v1/link", json=ONE | {"id": "mine"})
        while served.desk.inside < 65:
            time.sleep(0.01)
        before = len(linker.order)
        linker.go.set()
        assert mine.result().status_code == 200
        assert linker.order.index("mine") - before <= 64 + 2 * 50
        assert rest.result().status_code == 200
    assert len(linker.order) - linker.order.count("ready") == 64 * 50 + 1


def test_who_fills_the_house_leaves_room_for_somebody_else(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def waiting(table: pa.Table) -> Reply:
        if table["text"][0].as_py() != ONE["text"]:
            while not go.is_set():
                await asyncio.sleep(0.01)
        return await echoed(table)

    with crowded(tmp_path, waiting, queue=4, documents=4) as (served, flood, stranger, pool):
        rest = pool.submit(flood.post, "/v1/link", json={"documents": [{"text": f"{n}"} for n in range(4)]})
        while served.desk.inside < 4:
            time.sleep(0.01)
        assert flood.post("/v1/link", json=ONE).json()["error"]["kind"] == "busy"
        assert stranger.post("/v1/link", json=ONE).status_code == 200
        go.set()
        assert rest.result().status_code == 200


def test_unfinished_uploads_take_no_place_and_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 1.0)
    with house(tmp_path, echoed) as (url, served), ExitStack() as stack:
        host, _, port = url.removeprefix("http://").partition(":")
        open_ones = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(140)]
        for one in open_ones:
            one.sendall(HEAD + b"\r\n{")
        with visitor(url, STRANGER) as stranger:
            assert stranger.post("/v1/link", json=ONE).status_code == 200
        for one in open_ones:
            one.settimeout(100)
            assert b"400 Bad Request" in one.recv(2**16)
        assert served.desk.bytes.total() == 0


def test_a_body_that_drips_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no progress."""
    monkeypatch.setattr(requests, "PATIENCE", 0.3)

    async def dripping() -> Any:
        while True:
            await asyncio.sleep(0.05)
            yield b" "

    async def read() -> None:
        with pytest.raises(requests.Fault, match="too slowly"):
            await requests.read({}, dripping(), 10**6, lambda size: None)  # type: ignore[arg-type]

    asyncio.run(read())


def test_uploads_of_one_caller_fill_half_the_memory_at_most(tmp_path: Path) -> None:
    with house(tmp_path, echoed, megabytes=1.0) as (url, served), ExitStack() as stack:
        host, _, port = url.removeprefix("http://").partition(":")
        for _ in range(4):
            one = stack.enter_context(socket.create_connection((host, int(port))))
            one.sendall(HEAD + b"\r\n" + b" " * 999_998)
        while served.desk.bytes.total() < 3_900_000:
            time.sleep(0.01)
        with visitor(url, "127.0.0.1") as same, visitor(url, STRANGER) as stranger:
            large = ONE | {"id": "i" * 500_000}
            assert same.post("/v1/link", json=large).json()["error"]["kind"] == "busy"
            assert stranger.post("/v1/link", json=large).status_code == 200


def test_slow_hosts_keep_nobody_else_waiting(tmp_path: Path) -> None:
    go = threading.Event()

    def fetch(url: str) -> bytes:
        if "slow" in url:
            go.wait(400)
        raise ImageError("there is nothing")

    slow = {"documents": [{"text": f"{n}", "image": f"http://slow.example/{n}"} for n in range(64)]}
    with crowded(tmp_path, echoed, fetch=fetch, queue=64) as (served, flood, stranger, pool):
        rest = [pool.submit(flood.post, "/v1/link", json=slow) for _ in range(2)]
        while served.pictures.turns.under_way < 8:
            time.sleep(0.01)
        assert stranger.post("/v1/link", json=ONE).status_code == 200
        quick = {"documents": [ONE | {"image": "http://quick.example/"}]}
        row = stranger.post("/v1/link", json=quick).json()["links"][0]
        assert "there is nothing" in row["error"]
        go.set()
        assert {one.result().status_code for one in rest} <= {200, 503}


def test_turns_go_by_cost() -> None:
    """Who asks for small things and who asks for large ones have as much of both."""

    async def played() -> list[str]:
        turns, order = Turns(lambda: 1), list[str]()

        async def work(name: str, cost: int) -> None:
            await turns.enter(name, cost)
            order.extend([name] * cost)
            await asyncio.sleep(0)
            turns.leave(name, cost)

        large = [asyncio.create_task(work("large", 10)) for _ in range(5)]
        small = [asyncio.create_task(work("small", 1)) for _ in range(50)]
        await asyncio.gather(*large, *small)
        assert turns.inside == 0
        return order

    order = asyncio.run(played())
    for done in range(20, 100, 20):
        assert abs(order[:done].count("large") - order[:done].count("small")) <= 20


def test_who_leaves_while_waiting_gives_its_turn_to_others() -> None:
    async def played() -> None:
        turns = Turns(lambda: 1)
        await turns.enter("first", 1)
        waiting = [asyncio.create_task(turns.enter(name, 1)) for name in ("second", "second", "third")]
        await asyncio.sleep(0)
        assert turns.ahead("second") == 4
        for one in waiting[:2]:
            one.cancel()
        await asyncio.wait(waiting[:2])
        turns.leave("first", 1)
        await waiting[2]
        assert (turns.under_way, turns.inside) == (1, 1)

    asyncio.run(played())


def test_a_caller_is_known_by_its_key_and_not_by_its_address(tmp_path: Path) -> None:
    """Two keys from one address take turns; the same key from two addresses is one caller."""
    from dataclasses import replace

    from gemel_ray.serving.door import Door

    seen: list[str] = []

    async def noting(table: pa.Table) -> Reply:
        seen.extend(served.desk.documents)
        return await echoed(table)

    served = replace(endpoint(tmp_path, noting, Online()), door=Door(("one", "two")))
    with listening(create(served)) as url:
        for key, address in (("one", FLOOD), ("two", FLOOD), ("two", STRANGER)):
            with visitor(url, address) as caller:
                sent = {"Authorization": f"Bearer {key}"}
                assert caller.post("/v1/link", json=ONE, headers=sent).status_code == 200
    assert [name for name in seen if name.startswith("key")] == ["key 0", "key 1", "key 1"]
    assert json.dumps(seen).count("word") == 0
