"""Who is let in, for how long, and what happens when those who work die. The linkers are the tests' own: an
engine that dies in the right moment cannot be had otherwise (test_online.py kills real ones)."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from gemel_ray.pictures.limits import ImageError
from gemel_ray.segments import Online
from gemel_ray.serving import meters
from gemel_ray.serving.app import Endpoint, create
from gemel_ray.serving.linker import Linker, Reply, WorkerLost
from tests.live import soon
from tests.serving_cases import client, echoed, endpoint

LIMITS = Online(documents=3, queue=3)
HASTY = Online(documents=3, queue=3, deadline=0.3)  # who runs out of time
ONE = {"text": "Adobe is here.", "mentions": ["Adobe"]}


class Slow:
    """A linker that answers when it is told to, and knows who was cancelled."""

    def __init__(self) -> None:
        self.go, self.asked, self.left = asyncio.Event(), 0, 0

    async def __call__(self, table: pa.Table) -> Reply:
        self.asked += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        return await echoed(table)

    async def until(self, asked: int) -> None:
        while self.asked < asked:
            await asyncio.sleep(0.01)


async def ready(http: httpx.AsyncClient) -> None:
    """Wait until it says so."""
    while (await http.get("/readyz")).status_code != 200:
        await asyncio.sleep(0.01)


Scene = Callable[[Endpoint, httpx.AsyncClient, Any], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a scene against an endpoint over the linker that `make` makes."""

    def play(scene: Scene, make: Callable[[], Linker], limits: Online = LIMITS, key: str = "") -> None:
        async def played() -> None:
            linker = make()
            served = endpoint(tmp_path, linker, limits, key)
            async with client(served) as http:
                await scene(served, http, linker)
            assert served.desk.inside == 0

        asyncio.run(played())

    return play


def kind(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["kind"]


def test_beyond_the_queue_it_is_said_at_once(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        inside = [asyncio.create_task(http.post("/v1/link", json=ONE)) for _ in range(2)]
        await slow.until(2)
        two = await http.post("/v1/link", json={"documents": [ONE, ONE]})  # there is room for one
        assert kind(two) == (503, "busy")
        assert int(two.headers["retry-after"]) >= 1
        slow.go.set()
        assert [(await one).status_code for one in inside] == [200, 200]
        assert (await http.post("/v1/link", json={"documents": [ONE, ONE]})).status_code == 200

    play(scene, Slow)


def test_behind_too_much_work_nobody_is_let_in(play: Any) -> None:
    """By what was measured, and told how long it will take; an idle house takes all the queue allows."""

    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        served.desk.pace.rate = 0.25  # as a rush has shown: 4 seconds a document
        many = asyncio.create_task(http.post("/v1/link", json={"documents": [ONE] * 3}))
        await slow.until(3)
        refused = await http.post("/v1/link", json=ONE)
        assert kind(refused) == (503, "busy")
        assert refused.headers["retry-after"] == "12"
        said = refused.json()["error"]["message"]
        assert said.startswith("3 mentions are ahead, about 12 seconds of work")
        assert "online.wait" in said
        served.desk.pace.rate = 0.5  # now 6 seconds
        small = asyncio.create_task(http.post("/v1/link", json=ONE))
        await slow.until(4)
        slow.go.set()
        assert [(await answer).status_code for answer in (many, small)] == [200, 200]

    play(scene, Slow, Online(wait=10.0))


def test_a_rush_sets_the_pace(play: Any) -> None:
    """Documents that wait for each other, one after the other through a linker."""
    one_by_one = asyncio.Lock()

    async def single(table: pa.Table) -> Reply:
        async with one_by_one:
            await asyncio.sleep(0.02)
            return await echoed(table)

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        assert (await http.post("/v1/link", json=ONE)).status_code == 200
        assert served.desk.pace.rate == 0
        answers = await asyncio.gather(*(http.post("/v1/link", json=ONE) for _ in range(12)))
        assert {answer.status_code for answer in answers} == {200}
        assert 0 < served.desk.pace.rate < 5
        assert b"gemel_ray_mentions_per_second 0.0" not in served.desk.meters.text()

    play(scene, lambda: single, Online(wait=0.1))


def test_what_takes_too_long_is_given_up_down_to_the_engine(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        answer = await http.post("/v1/link", json={"documents": [ONE, ONE]})
        assert kind(answer) == (504, "timeout")
        assert slow.left == 2

    play(scene, Slow, HASTY)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_client_that_leaves_takes_its_work_along(play: Any, accept: str) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        asked = http.post("/v1/link", json={"documents": [ONE, ONE]}, headers={"Accept": accept})
        leaving = asyncio.create_task(asked)
        await slow.until(2)
        leaving.cancel()
        await asyncio.wait({leaving})
        assert slow.left == 2

    play(scene, Slow)


def test_lines_come_as_documents_are_done(play: Any) -> None:
    async def uneven(table: pa.Table) -> Reply:
        await asyncio.sleep(0.2 if table["document_id"][0].as_py() == "slow" else 0)
        return await echoed(table)

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        many = {"documents": [ONE | {"id": "slow"}, ONE | {"id": "fast"}, {"text": "", "id": "bad"}]}
        answer = await http.post("/v1/link", json=many, headers={"Accept": "application/x-ndjson"})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line.get("document_id") for line in lines[:-1]][-1] == "slow"
        assert {line["document_id"]: line["links"][0]["status"] for line in lines[:-1]} == {
            "slow": "nil", "fast": "nil", "bad": "error",
        }  # fmt: skip
        assert lines[-1].keys() == {"request_id", "timings", "fingerprint", "knowledge"}

    play(scene, lambda: uneven)


def test_a_stream_that_takes_too_long_ends_with_the_reason(play: Any) -> None:
    async def some(table: pa.Table) -> Reply:
        await asyncio.sleep(9 if table["document_id"][0].as_py() == "slow" else 0)
        return await echoed(table)

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        many = {"documents": [ONE | {"id": "slow"}, ONE]}
        answer = await http.post("/v1/link", json=many, headers={"Accept": "application/x-ndjson"})
        assert json.loads(answer.text.splitlines()[-1])["error"]["kind"] == "timeout"

    play(scene, lambda: some, HASTY)


def dying(times: int) -> Linker:
    """A linker that is gone so many times."""
    left = times

    async def linker(table: pa.Table) -> Reply:
        nonlocal left
        left -= 1
        if left >= 0:
            raise WorkerLost("a worker has died")
        return await echoed(table)

    return linker


def test_an_accepted_document_survives_the_death_of_a_worker(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        assert (await http.post("/v1/link", json=ONE)).status_code == 200
        assert b"asked_again_total 1.0" in served.desk.meters.text()

    play(scene, lambda: dying(1), Online())


def test_while_nobody_works_it_is_not_ready_and_says_so(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        state = await http.get("/readyz")
        assert (state.status_code, state.json()["reason"]) == (503, "a worker has died")
        assert kind(await http.post("/v1/link", json=ONE)) == (503, "not_ready")
        assert (await http.get("/healthz")).status_code == 200
        served.desk.readiness.suspect()
        while served.desk.readiness.down:  # it asks by itself until a link comes through
            await asyncio.sleep(0.05)
        assert (await http.get("/readyz")).json()["status"] == "ready"
        assert (await http.post("/v1/link", json=ONE)).status_code == 200

    play(scene, lambda: dying(3), Online())


def test_a_link_that_never_comes_back_is_not_ready(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemel_ray.serving.readiness.PATIENCE", 0.1)

    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        assert (await http.get("/readyz")).status_code == 503
        slow.go.set()
        await ready(http)

    play(scene, Slow)


def test_a_fault_of_ours_is_told_to_the_log_and_not_to_the_client(play: Any) -> None:
    async def broken(table: pa.Table) -> Reply:
        raise KeyError("the secret inside")

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        written = io.StringIO()
        stream = logging.StreamHandler(written)
        stream.setFormatter(meters.AsJson())
        meters.log.addHandler(stream)
        meters.log.setLevel(logging.INFO)
        answer = await http.post("/v1/link", json=ONE, headers={"X-Request-ID": "mine"})
        meters.log.removeHandler(stream)
        assert kind(answer) == (500, "internal")
        assert "secret" not in answer.text
        lines = [json.loads(line) for line in written.getvalue().splitlines()]
        assert all(line["request_id"] == "mine" for line in lines)
        assert "the secret inside" in lines[0]["traceback"]
        assert (lines[1]["status"], lines[1]["path"], lines[1]["kind"]) == (500, "/v1/link", "internal")
        assert ONE["text"] not in written.getvalue()

    play(scene, lambda: broken)


def test_the_key_is_asked_for(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        for wrong in ({}, {"Authorization": "Bearer else"}, {"Authorization": "Basic word"}):
            answer = await http.post("/v1/link", json=ONE, headers=wrong)
            assert kind(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer word"}
        assert (await http.post("/v1/link", json=ONE, headers=right)).status_code == 200
        assert (await http.get("/v1/examples")).status_code == 401
        assert (await http.get("/healthz")).status_code == 200

    play(scene, lambda: echoed, key="word")


def test_request_ids_come_back(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        first = await http.post("/v1/link", json=ONE, headers={"X-Request-ID": "a-1"})
        assert (first.json()["request_id"], first.json()["links"][0]["document_id"]) == ("a-1", "a-1")
        odd = (await http.post("/v1/link", json=ONE, headers={"X-Request-ID": '"}{'})).json()["request_id"]
        assert re.fullmatch("[0-9a-f]{32}", odd)

    play(scene, lambda: echoed)


def test_prometheus_gets_requests_tokens_and_times(play: Any) -> None:
    counts = iter([{"asked": 10, "cached": 4, "decoded": 2}, {"asked": 20, "cached": 10, "decoded": 3}])

    async def counting(table: pa.Table) -> Reply:
        reply = await echoed(table)
        return Reply(reply.rows, {"encode": 0.25}, next(counts))

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        for _ in range(2):
            await http.post("/v1/link", json=ONE)
        await http.post("/v1/link", json={})
        told = (await http.get("/metrics")).text
        for line in (
            'gemel_ray_requests_total{route="/v1/link",status="200"} 2.0',
            'gemel_ray_requests_total{route="/v1/link",status="400"} 1.0',
            'gemel_ray_errors_total{kind="bad_request"} 1.0',
            'gemel_ray_links_total{status="nil"} 2.0',
            'gemel_ray_prompt_tokens_total{source="computed"} 16.0',
            'gemel_ray_prompt_tokens_total{source="cached"} 14.0',
            "gemel_ray_decoded_tokens_total 5.0",
            'gemel_ray_stage_seconds_sum{stage="encode"} 0.5',
            "gemel_ray_documents_inside 0.0",
            "gemel_ray_queue 3.0",
        ):
            assert line in told.splitlines(), told

    play(scene, lambda: counting)


def test_nobody_is_let_in_any_more_when_it_closes(play: Any) -> None:
    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        inside = asyncio.create_task(http.post("/v1/link", json=ONE))
        await slow.until(1)
        served.desk.close()
        assert kind(await http.post("/v1/link", json=ONE)) == (503, "not_ready")
        state = await http.get("/readyz")
        assert (state.status_code, state.json()["reason"]) == (503, "it is being shut down")
        slow.go.set()
        assert (await inside).status_code == 200

    play(scene, Slow)


def test_it_is_not_ready_before_a_first_link(tmp_path: Path) -> None:
    async def started() -> None:
        slow = Slow()
        served = endpoint(tmp_path, slow, LIMITS)
        served.desk.readiness.down = "the models are being loaded"
        app = create(served)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                await slow.until(1)  # it asks by itself
                refused = await http.post("/v1/link", json=ONE)
                assert refused.json()["error"]["message"] == "not ready: the models are being loaded"
                slow.go.set()
                await ready(http)
                assert (await http.post("/v1/link", json=ONE)).status_code == 200

    asyncio.run(started())


def test_a_busy_endpoint_is_not_taken_for_a_dead_one(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemel_ray.serving.readiness.PATIENCE", 0.1)
    monkeypatch.setattr("gemel_ray.serving.readiness._FRESH", 0.0)

    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        inside = asyncio.create_task(http.post("/v1/link", json=ONE))
        await slow.until(1)
        assert (await http.get("/readyz")).status_code == 200  # though it takes long
        slow.go.set()
        assert (await inside).status_code == 200

    play(scene, Slow, Online())


def test_one_that_hangs_is_found_out_by_requests_that_run_out_of_time(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemel_ray.serving.readiness.PATIENCE", 0.1)

    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        await asyncio.sleep(HASTY.deadline)
        assert kind(await http.post("/v1/link", json=ONE)) == (504, "timeout")
        await soon(lambda: served.desk.readiness.down)
        assert kind(await http.post("/v1/link", json=ONE)) == (503, "not_ready")
        slow.go.set()
        await ready(http)
        assert (await http.post("/v1/link", json=ONE)).status_code == 200

    play(scene, Slow, HASTY)


def test_pictures_of_slow_hosts_are_fetched_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(3)  # nobody is done before all three are asked

    def fetch(url: str) -> bytes:
        together.wait(100)
        if "bad" in url:
            raise ImageError("the server answered 404")
        return url.encode()

    async def asked() -> Any:
        async with client(endpoint(tmp_path, echoed, Online(), fetch=fetch)) as http:
            urls = ["http://a.test/1", "http://a.test/2", "http://a.test/bad", "http://a.test/1"]
            return (
                await http.post("/v1/link", json={"documents": [ONE | {"image": u} for u in urls]})
            ).json()

    links = asyncio.run(asked())["links"]
    assert [row["status"] for row in links] == ["nil", "nil", "error", "nil"]
    assert links[2]["error"] == "cannot read the image http://a.test/bad: the server answered 404"


def test_pictures_of_a_request_are_not_too_large_together(tmp_path: Path) -> None:
    async def asked() -> Any:
        served = endpoint(tmp_path, echoed, Online(megabytes=0.01), fetch=lambda url: b"x" * 6000)
        async with client(served) as http:
            urls = ["http://a.test/1", "http://a.test/2"]
            return await http.post("/v1/link", json={"documents": [ONE | {"image": u} for u in urls]})

    assert kind(asyncio.run(asked())) == (413, "too_large")


def test_when_nothing_comes_through_although_somebody_waits_it_is_not_ready(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' links count for a while only: an engine that hangs has many who wait."""
    monkeypatch.setattr("gemel_ray.serving.readiness.SILENT", 1.0)
    monkeypatch.setattr("gemel_ray.serving.readiness.PATIENCE", 0.1)

    async def scene(served: Endpoint, http: httpx.AsyncClient, slow: Slow) -> None:
        inside = asyncio.create_task(http.post("/v1/link", json=ONE))
        await slow.until(1)
        assert (await http.get("/readyz")).status_code == 200
        await asyncio.sleep(1.0)
        state = await http.get("/readyz")
        assert (state.status_code, "somebody waits" in state.json()["reason"]) == (503, True)
        assert kind(await http.post("/v1/link", json=ONE)) == (503, "not_ready")
        slow.go.set()
        assert (await inside).status_code == 200
        assert (await http.get("/readyz")).status_code == 200

    play(scene, Slow, Online())


def test_who_loses_its_worker_has_the_time_of_a_request_again(play: Any) -> None:
    """The replacement of a hung engine takes longer than what is left."""
    asked: list[pa.Table] = []

    async def dying(table: pa.Table) -> Reply:
        asked.append(table)
        await asyncio.sleep(1.5)
        if len(asked) == 1:
            raise WorkerLost("a worker has died")
        return await echoed(table)

    async def scene(served: Endpoint, http: httpx.AsyncClient, linker: Any) -> None:
        assert (await http.post("/v1/link", json=ONE)).status_code == 200

    play(scene, lambda: dying, Online(deadline=2.9))
