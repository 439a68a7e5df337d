"""Pictures by URL in a job: patience, manners, each once; a real server that misbehaves."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import pytest
from live import answered

from gemel_ray.pictures import fetching
from gemel_ray.pictures.fetching import Fetcher, FetchPolicy, fetch_result
from gemel_ray.pictures.limits import ImageError, ImageLimits
from gemel_ray.pictures.web import is_public_or_private

LIMITS = ImageLimits(bytes=1000, seconds=60.0)


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.seen, self.times = Counter[str](), list[tuple[str, float]]()
        self.lock, self.inside, self.most = threading.Lock(), 0, 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.seen[self.path] += 1
            self.server.times.append((self.path, time.monotonic()))
            self.server.inside += 1
            self.server.most = max(self.server.most, self.server.inside)
        kind, turn = self.path.rpartition("/")[2].partition("-")[0], self.server.seen[self.path]
        time.sleep(0.05)
        with self.server.lock:
            self.server.inside -= 1
        if kind == "breaks" and turn < 3:
            self.close_connection = True  # without a word
            return
        status = {"busy": 503 if turn < 3 else 200, "wait": 429 if turn < 2 else 200,
                  "until": 429 if turn < 2 else 200, "gone": 404,
                  "never": 503}.get(kind, 200)  # fmt: skip
        self.send_response(status)
        if kind == "wait":
            self.send_header("Retry-After", "1")
        if kind == "until":
            self.send_header("Retry-After", formatdate(time.time() + 2, usegmt=True))
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"picture")

    def log_message(self, *parts: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(fetching, "_PAUSES", (0.02, 0.02))
    server = _Server()
    with answered(server):
        yield server


@pytest.fixture
def asking() -> Iterator[Fetcher]:
    made = Fetcher(LIMITS, FetchPolicy(threads=16, per_host=3, public=False))
    yield made
    made.close()


@pytest.mark.parametrize("path", ["busy", "breaks"])
def test_a_server_in_trouble_is_asked_again(server: _Server, asking: Fetcher, path: str) -> None:
    assert fetch_result(asking.ask(server.url(path))) == b"picture"
    assert server.seen[f"/{path}"] == 3


@pytest.mark.parametrize("path", ["wait", "until"])
def test_a_server_says_how_long_to_wait(server: _Server, asking: Fetcher, path: str) -> None:
    assert fetch_result(asking.ask(server.url(path))) == b"picture"
    first, second = (t for _, t in server.times)
    assert second - first >= 1


@pytest.mark.parametrize(
    ("path", "asked", "says"),
    [("gone", 1, "the server answered 404"), ("never", 3, "the server answered 503")],
)
def test_what_cannot_be_had_says_why(
    server: _Server, asking: Fetcher, path: str, asked: int, says: str
) -> None:
    with pytest.raises(ImageError, match=says):
        fetch_result(asking.ask(server.url(path)))
    assert server.seen[f"/{path}"] == asked


def test_a_host_is_asked_by_a_few_at_a_time(server: _Server, asking: Fetcher) -> None:
    answers = [asking.ask(server.url(f"a-{i}")) for i in range(20)]
    assert [fetch_result(a) for a in answers] == [b"picture"] * 20
    assert server.most == 3


def test_a_slow_host_keeps_no_other_waiting(server: _Server) -> None:
    """More pictures of one host than there are threads, and one of another."""
    asking = Fetcher(LIMITS, FetchPolicy(threads=4, per_host=2, public=False))
    slow = [asking.ask(server.url(f"a-{i}")) for i in range(24)]
    other = asking.ask(server.url("b").replace("127.0.0.1", "localhost"))
    assert fetch_result(other) == b"picture"
    assert not all(answer.done() for answer in slow)
    assert [fetch_result(a) for a in slow] == [b"picture"] * 24
    asking.close()


@pytest.mark.parametrize("waits", ["busy", "done"])
def test_no_thread_sits_a_pause_out(server: _Server, monkeypatch: pytest.MonkeyPatch, waits: str) -> None:
    """Two threads: one host makes two pictures wait, or is left alone for a while after either."""
    monkeypatch.setattr(fetching, "_PAUSES", (30.0,))
    asking = Fetcher(
        LIMITS, FetchPolicy(threads=2, per_host=2, pause=0.0 if waits == "busy" else 30.0, public=False)
    )
    for number in range(2):
        asking.ask(server.url(f"{'never' if waits == 'busy' else 'a'}-{number}"))
    while sum(server.seen.values()) < 2:
        time.sleep(0.01)
    other = asking.ask(server.url("b").replace("127.0.0.1", "localhost"))
    assert other.result(timeout=25) == b"picture"
    asking.close()


@pytest.mark.parametrize("path", ["busy", "breaks", "wait"])
def test_a_busy_server_behind_a_proxy_is_asked_again(
    server: _Server, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The server plays the proxy: it is asked for another host's URL as a whole."""
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.setenv("no_proxy", "")
    asking = Fetcher(LIMITS, FetchPolicy())
    url = f"http://pictures.invalid/{path}"
    assert fetch_result(asking.ask(url)) == b"picture"
    assert server.seen[url] == (2 if path == "wait" else 3)
    asking.close()


@pytest.mark.parametrize(("code", "asked"), [(socket.EAI_AGAIN, 3), (socket.EAI_NONAME, 1)])
def test_a_resolver_that_fails_for_now_is_asked_again(
    server: _Server, monkeypatch: pytest.MonkeyPatch, code: int, asked: int
) -> None:
    questions = []

    def resolve(host: str, *rest: object, **more: object) -> list[Any]:
        questions.append(host)
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    asking = Fetcher(LIMITS, FetchPolicy())
    with pytest.raises(ImageError, match="its host is not known"):
        fetch_result(asking.ask("http://pictures.invalid/a.jpg"))
    assert questions == ["pictures.invalid"] * asked
    asking.close()


def test_pictures_of_a_host_are_asked_for_with_a_pause_between_them(server: _Server) -> None:
    asking = Fetcher(LIMITS, FetchPolicy(threads=8, per_host=1, pause=0.3, public=False))
    answers = [asking.ask(server.url(f"a-{i}")) for i in range(3)]
    assert [fetch_result(a) for a in answers] == [b"picture"] * 3
    times = [t for _, t in server.times]
    assert times[2] - times[0] >= 0.6
    asking.close()


def test_a_url_under_way_is_not_asked_for_again(server: _Server, asking: Fetcher) -> None:
    answers = [asking.ask(server.url("a")) for _ in range(8)]
    assert {fetch_result(a) for a in answers} == {b"picture"}
    assert server.seen["/a"] == 1


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("169.254.169.254", False), ("fe80::1", False), ("::ffff:169.254.169.254", False), ("0.0.0.0", False),
     ("64:ff9b::a9fe:a9fe", False), ("2002:a9fe:a9fe::1", False), ("fd00:ec2::254", False),
     ("fd20:ce::254", False), ("100.100.100.200", False), ("168.63.129.16", False),
     ("224.0.0.1", False), ("127.0.0.1", True), ("10.1.2.3", True), ("93.184.216.34", True)],
)  # fmt: skip
def test_a_cloud_s_credentials_are_nobody_s_picture(address: str, allowed: bool) -> None:
    assert is_public_or_private(ip_address(address)) is allowed


def test_private_hosts_are_refused_unless_configured(server: _Server) -> None:
    asking = Fetcher(LIMITS, FetchPolicy())
    with pytest.raises(ImageError, match=r"its host is not a public one \(encode\.public_hosts=false"):
        fetch_result(asking.ask(server.url("a")))
    assert not server.seen
    asking.close()


@pytest.mark.parametrize("url", ["http://[", "http://", "https://no host/", "http://user@127.0.0.1/x"])
def test_broken_urls_are_errors_of_their_own(asking: Fetcher, url: Any) -> None:
    with pytest.raises(ImageError):
        fetch_result(asking.ask(url))
