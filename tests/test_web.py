"""Strangers' URLs: only public addresses, and only the one that was checked."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import pytest
from live import answered

from gemel_ray.pictures.limits import ImageError, ImageLimits
from gemel_ray.pictures.web import Address, Web, is_public, resolved

LIMITS = ImageLimits(bytes=1000, seconds=60.0)
BYTES = b"picture" * 20


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        if kind == "utf8":
            self.wfile.write("HTTP/1.1 302 Found\r\nLocation: /café.jpg\r\n\r\n".encode())
            return
        if kind == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
            return
        body = {"large": b"x" * 5000}.get(kind, BYTES)
        self.send_response(404 if kind == "missing" else 200)
        self.send_header("Content-Length", str(len(body) * (2 if kind == "short" else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.seen = []  # type: ignore[attr-defined]
    with answered(server):
        yield server


def names(*pairs: tuple[str, str]) -> Any:
    """A resolver of its own: what each name stands for."""

    def resolve(host: str, port: int) -> list[Address]:
        found = [ip_address(address) for name, address in pairs if name == host]
        if not found:
            raise socket.gaierror("no such name")
        return found

    return resolve


def open_to(address: str) -> Any:
    """As if this one address were public: the server here has no other."""
    return lambda asked: str(asked) == address


@pytest.fixture
def web(server: Any) -> Web:
    server.seen.clear()
    known = names(("pictures.test", "127.0.0.1"), ("inside.test", "127.0.0.2"))
    return Web(LIMITS, resolve=known, allowed=open_to("127.0.0.1"))


def url(server: Any, path: str, host: str = "pictures.test") -> str:
    return f"http://{host}:{server.server_port}/{path}"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "fec0::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
        "192.0.0.9",
        "192.0.0.192",
        "192.88.99.1",
        "3fff::1",
        "5f00::1",
        "2001::1",
        "2001:20::1",
        "2002:5db8:d822::1",
        "100::1",
        "64:ff9b:1::1",
        "::5db8:d822",
        "4000::1",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:7f00:1]"]
)
def test_this_machine_is_refused_however_it_is_written(server: Any, host: str) -> None:
    server.seen.clear()
    with pytest.raises(ImageError, match="its host is not"):
        Web(LIMITS).fetch(url(server, "picture", host))
    assert server.seen == []


def test_what_is_there_comes_back(web: Web, server: Any) -> None:
    assert web.fetch(url(server, "a picture?x=ü")) == BYTES
    assert server.seen == [("/a%20picture?x=%C3%BC", f"pictures.test:{server.server_port}")]


def test_one_private_address_among_several_refuses_the_host(server: Any) -> None:
    known = names(("both.test", "127.0.0.1"), ("both.test", "10.0.0.1"))
    web = Web(LIMITS, resolve=known, allowed=open_to("127.0.0.1"))
    with pytest.raises(ImageError, match="not a public one"):
        web.fetch(url(server, "picture", "both.test"))


def test_a_name_is_resolved_once_and_the_checked_address_is_asked(server: Any) -> None:
    """A name that would lead elsewhere the second time has no second time."""
    answers = iter([[ip_address("127.0.0.1")], [ip_address("10.0.0.1")]])
    web = Web(LIMITS, resolve=lambda host, port: next(answers), allowed=open_to("127.0.0.1"))
    assert web.fetch(url(server, "picture", "turning.test")) == BYTES
    assert next(answers) == [ip_address("10.0.0.1")]


@pytest.mark.parametrize("target", ["http://inside.test/x", "http://127.0.0.2/x", "//inside.test/x"])
def test_a_redirection_is_checked_like_a_first_address(web: Web, server: Any, target: str) -> None:
    with pytest.raises(ImageError, match="its host is not"):
        web.fetch(url(server, f"to/{target}"))
    assert len(server.seen) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://pictures.test/x", "gopher://pictures.test"])
def test_a_redirection_stays_with_http(web: Web, server: Any, target: str) -> None:
    with pytest.raises(ImageError, match="start with http"):
        web.fetch(url(server, f"to/{target}"))


def test_redirections_are_followed_but_not_for_ever(web: Web, server: Any) -> None:
    assert web.fetch(url(server, "to//picture")) == BYTES
    with pytest.raises(ImageError, match="redirected more than 5 times"):
        web.fetch(url(server, "to/" + "/to/" * 20))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file:///etc/passwd", "start with http"),
        ("/etc/passwd", "start with http"),
        ("http://user:word@pictures.test/x", "a user in it"),
        ("http:///x", "has no host"),
        ("http://unknown.test/x", "its host is not known"),
        ("http://pictures.test:99999/x", "Port out of range"),
        ("http://[::1/x", "Invalid IPv6 URL"),
        ("http://pictures.test:1/x", "Connection refused"),
        ("http://a\r\nb.test/", "its host is not known"),
        (f"http://{'x' * 70}.test/", "its host is not known"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(web: Web, address: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        web.fetch(address)


def test_only_the_hosts_allowed_are_asked(web: Web, server: Any) -> None:
    some = Web(LIMITS, ("*.example.org", "PICTURES.test"), web.resolve, web.allowed)
    assert some.fetch(url(server, "picture")) == BYTES
    with pytest.raises(ImageError, match="not fetched here"):
        some.fetch(url(server, "picture", "inside.test"))


def test_no_more_than_the_limit_is_read(web: Web, server: Any) -> None:
    assert len(web.fetch(url(server, "large"))) == LIMITS.bytes + 1


@pytest.mark.parametrize(
    ("path", "says"),
    [("missing", "answered 404"), ("short", "cut short")],
)
def test_a_server_that_does_not_deliver_is_an_error_with_its_reason(
    web: Web, server: Any, path: str, says: str
) -> None:
    with pytest.raises(ImageError, match=says):
        web.fetch(url(server, path))


def test_a_server_that_is_too_slow_is_given_up(web: Web, server: Any) -> None:
    hasty = Web(ImageLimits(bytes=1000, seconds=0.5), resolve=web.resolve, allowed=web.allowed)
    with pytest.raises(ImageError, match="did not arrive in time"):
        hasty.fetch(url(server, "drip"))


def test_names_are_resolved_by_the_system() -> None:
    assert ip_address("127.0.0.1") in resolved("localhost", 80)


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("bücher.test", "xn--bcher-kva.test"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("faß.test", "xn--fa-hia.test"),
    ],
)
def test_international_hosts_are_asked_by_their_ascii_names(server: Any, host: str, asked: str) -> None:
    web = Web(LIMITS, resolve=names((asked, "127.0.0.1")), allowed=open_to("127.0.0.1"))
    assert web.fetch(url(server, "café.jpg", host)) == BYTES
    assert server.seen[-1:] == [("/caf%C3%A9.jpg", f"{asked}:{server.server_port}")]


def test_digits_of_other_scripts_lead_nowhere_else(web: Web, server: Any) -> None:
    with pytest.raises(ImageError, match="its host is not a public one"):
        Web(LIMITS).fetch(url(server, "picture", "１２７.0.0.1"))
    assert server.seen == []


@pytest.mark.parametrize("ends", ["{} ", " {}", "{}\n", "\t{}"])
def test_white_space_at_the_ends_of_a_url_is_none_of_it(web: Web, server: Any, ends: str) -> None:
    assert web.fetch(ends.format(url(server, "picture"))) == BYTES
    assert [path for path, _ in server.seen] == ["/picture"]


def test_a_redirection_in_utf_8_is_followed(web: Web, server: Any) -> None:
    assert web.fetch(url(server, "utf8")) == BYTES
    assert [path for path, _ in server.seen] == ["/utf8", "/caf%C3%A9.jpg"]


class _Keeping(BaseHTTPRequestHandler):
    """Keeps connections alive for so many requests, and counts them."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_GET(self) -> None:
        if self.requests == 0:
            self.server.seen.append(self.client_address)  # type: ignore[attr-defined]
        self.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(BYTES)))
        self.end_headers()
        self.wfile.write(BYTES)
        if self.path == "/last":  # says nothing of it, and goes
            self.close_connection = True

    def log_message(self, *parts: object) -> None:
        pass


@pytest.fixture
def keeping() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Keeping)
    server.seen = []  # type: ignore[attr-defined]
    with answered(server):
        yield server


def test_a_connection_is_kept_for_the_host_s_next_pictures(web: Web, keeping: Any) -> None:
    for n in range(5):
        assert web.fetch(url(keeping, str(n))) == BYTES
    assert len(keeping.seen) == 1


def test_a_connection_that_the_host_has_closed_is_not_used_again(web: Web, keeping: Any) -> None:
    assert web.fetch(url(keeping, "last")) == BYTES
    time.sleep(0.2)  # for the end of it to arrive
    assert web.fetch(url(keeping, "next")) == BYTES
    assert len(keeping.seen) == 2


def test_a_kept_connection_is_of_the_host_that_was_checked(web: Web, keeping: Any) -> None:
    """Another host at the same port has a connection of its own, and its own check."""
    assert web.fetch(url(keeping, "picture")) == BYTES
    with pytest.raises(ImageError, match="not a public one"):
        web.fetch(url(keeping, "picture", "inside.test"))
    assert len(keeping.seen) == 1
