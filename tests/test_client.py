"""The client against the real endpoint, and against servers that are busy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from files import DATA
from live import listening
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemel_ray.client import Client, ServerError

BUSY = {"error": {"message": "100 documents are waiting already", "kind": "busy", "request_id": "r1"}}
DONE = {"links": [{"entity": "Adobe"}]}


def replies(*answers: Callable[[], Response]) -> tuple[Any, list[float]]:
    """A server that answers so, one after the other, and when it was asked."""
    asked: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await Request(scope, receive).body()
        asked.append(time.monotonic())
        await answers[min(len(asked), len(answers)) - 1]()(scope, receive, send)

    return app, asked


def busy(seconds: str) -> Callable[[], Response]:
    return lambda: JSONResponse(BUSY, 503, {"Retry-After": seconds})


@pytest.mark.slow
def test_a_document_is_linked(live_url: str, tmp_path: Path) -> None:
    row = pq.read_table(DATA / "test.parquet").slice(0, 1).to_pylist()[0]
    (tmp_path / "flag.jpg").write_bytes(row["image"])
    with Client(live_url) as client:
        by_file = client.link(row["text"], tmp_path / "flag.jpg", ["AWS"])
        by_bytes = client.link(row["text"], row["image"], [(24, 27)], candidates=2)
    assert [link["mention"] for link in (*by_file, *by_bytes)] == ["AWS", "AWS"]
    assert by_file[0]["entity"] == by_bytes[0]["entity"]
    assert len(by_bytes[0]["candidates"]) == 2 < len(by_file[0]["candidates"])


@pytest.mark.slow
def test_many_documents_come_as_they_are_done(live_url: str) -> None:
    documents = [
        {"id": "a", "text": "Adobe and Google met.", "mentions": ["Adobe", "Google"]},
        {"id": "b", "text": "Adobe went home.", "mentions": [(10, 99)]},
        {"id": "c", "text": "Nobody came."},
    ]
    with Client(live_url) as client:
        found = {links[0]["document_id"]: links for links in client.link_many(documents)}
    assert {name: [link["status"] for link in links] for name, links in found.items()} == {
        "a": ["linked", "linked"],
        "b": ["error"],
        "c": ["nil"],
    }


@pytest.mark.slow
def test_a_refusal_is_told_as_the_server_tells_it(live_url: str) -> None:
    with Client(live_url) as client, pytest.raises(ServerError, match="candidates") as refused:
        client.link("Adobe", candidates=1000)
    assert (refused.value.kind, refused.value.status) == ("bad_request", 400)
    assert refused.value.request_id


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    app, asked = replies(busy("1"), lambda: JSONResponse(DONE))
    with listening(app) as url, Client(url) as client:
        assert client.link("Adobe") == DONE["links"]
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1


def test_the_client_gives_up_where_the_wait_is_longer_than_its_patience() -> None:
    app, asked = replies(busy("20"))
    waiting = pytest.raises(ServerError, match="100 documents are waiting")
    with listening(app) as url, Client(url, patience=5) as client, waiting as refused:
        client.link("Adobe")
    assert (refused.value.kind, len(asked)) == ("busy", 1)


def test_what_is_no_answer_of_ours_is_an_error_all_the_same() -> None:
    app, _ = replies(lambda: Response("<html>bad gateway</html>", 502))
    with listening(app) as url, Client(url) as client, pytest.raises(ServerError, match="answered 502"):
        client.link("Adobe")


def test_where_nothing_answers_the_error_names_the_address() -> None:
    with listening(replies()[0]) as url:
        pass
    with Client(url) as client, pytest.raises(ServerError, match=f"{url}.* no answer") as refused:
        client.link("Adobe")
    assert (refused.value.kind, refused.value.status) == ("unreachable", 0)


def test_a_fault_in_the_middle_of_a_stream_is_raised() -> None:
    lines = (
        '{"document_id": "a", "links": [{"entity": "Adobe"}]}\n{"error": {"message": "it took too long"}}\n'
    )
    app, _ = replies(lambda: Response(lines, media_type="application/x-ndjson"))
    with listening(app) as url, Client(url) as client:
        found = client.link_many([{"text": "Adobe"}, {"text": "Google"}])
        assert next(found) == [{"entity": "Adobe"}]
        with pytest.raises(ServerError, match="took too long"):
            next(found)


def test_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, gemel_ray.client; print(*{'torch', 'ray', 'vllm', 'pyarrow', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
