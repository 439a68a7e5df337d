"""The load generator: an open loop, honest about refusals."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from files import DATA
from live import answering

from gemel_ray.cli import main
from gemel_ray.serving.load import Load, arrivals, loaded, requests


class _Endpoint(BaseHTTPRequestHandler):
    """Answers one at a time, a quarter of a second each; what asks for it is refused."""

    turn = threading.Lock()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"links": [{}, {}]}).encode()
        if asked["text"] != "refuse":
            with self.turn:
                threading.Event().wait(0.25)
        self.send_response(503 if asked["text"] == "refuse" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with answering(_Endpoint) as at:
        yield at


def test_arrivals_do_not_wait_for_answers(address: str) -> None:
    """Four requests at once of a server that does one after the other: the last waits for all before it."""
    load = asyncio.run(loaded(address, [{"text": "a"}], [0.0] * 4, ""))
    assert load.figures()["latency"]["longest"] >= 0.9
    assert load.statuses == Counter({200: 4})
    assert [rows for _, rows in load.answered] == [2] * 4


def test_refusals_are_counted_and_no_latency(address: str) -> None:
    figures = asyncio.run(loaded(address, [{"text": "a"}, {"text": "refuse"}], [0.0] * 4, "")).figures()
    assert figures["statuses"] == {"200": 2, "503": 2}
    assert figures["requests"] == 4
    assert figures["latency"]["p50"] >= 0.25


def test_no_answer_at_all_is_told() -> None:
    figures = asyncio.run(loaded("http://127.0.0.1:9", [{"text": "a"}], [0.0], "")).figures()
    assert (figures["statuses"], figures["latency"]["p99"]) == ({"0": 1}, None)


def test_a_rate_is_kept_on_the_whole_and_the_same_again() -> None:
    times = list(arrivals(50, 100, seed=1))
    assert 4800 < len(times) < 5200
    assert times == sorted(times) == list(arrivals(50, 100, seed=1))
    assert times[-1] < 100


def test_documents_become_requests() -> None:
    first, *others = requests([str(DATA / "test.parquet")], 3)
    assert len(others) == 2
    assert first.keys() == {"text", "image", "mentions"}
    assert first["image"]
    assert first["mentions"][0].keys() == {"start", "end"}


def test_nothing_to_send_and_no_rate_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["load", "http://127.0.0.1:9", str(empty)]) == 2
    assert "there are no documents in" in capsys.readouterr().err
    assert main(["load", "http://127.0.0.1:9", "--rate", "0"]) == 2


def test_neither_filling_up_nor_running_empty_counts() -> None:
    """Sent for 7.5 s: of 10 answers 6 came between a quarter of that and its end."""
    load = Load(seconds=[1.0] * 10, answered=[(float(at), 2) for at in range(10)], arriving=7.5)
    load.statuses[200] = 10
    figures = load.figures()
    assert figures["answered_per_second"] == pytest.approx(6 / 5.625, abs=1e-3)
    assert figures["mentions_per_second"] == pytest.approx(12 / 5.625, abs=1e-3)


def test_a_load_without_answers_has_figures() -> None:
    assert Load().figures()["answered_per_second"] == 0.0
