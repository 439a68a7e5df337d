"""Who may ask: every route is closed without its key, whatever stands before its path, and so are requests
that a page of another site sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.segments import Online
from gemel_ray.serving.app import create
from gemel_ray.serving.app import endpoint as built
from tests.live import listening
from tests.serving_cases import echoed, endpoint

ONE = {"text": "Adobe is here.", "mentions": ["Adobe"]}
FREE = {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/page"}
RIGHT = {"Authorization": "Bearer word"}


@pytest.fixture(scope="module", params=["", "/prefix", "/v1/link", "/healthz"])
def keyed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The address of an endpoint with the key "word" behind a route prefix, and its app."""
    app = create(endpoint(tmp_path_factory.mktemp("keyed"), echoed, Online(), "word"))
    with listening(app, request.param) as url:
        yield url, app


def test_every_route_asks_for_the_key_behind_any_prefix(keyed: tuple[str, Any]) -> None:
    url, app = keyed
    paths = {route.path for route in app.routes}
    assert paths >= {*FREE, "/v1/link", "/v1/demonstration", "/v1/demonstration/picture", "/v1/examples"}
    for path in paths - FREE | {"/v1/unknown", "/elsewhere", "//v1/link", "/page/../v1/examples"}:
        for method in ("GET", "POST", "HEAD"):
            answer = httpx.request(method, url + path)
            assert answer.status_code == 401, (method, path)
    assert httpx.post(f"{url}/v1/link", json=ONE, headers=RIGHT).status_code == 200
    assert httpx.get(f"{url}/v1/examples", headers=RIGHT).status_code == 200


def test_the_states_and_the_pages_are_free(keyed: tuple[str, Any]) -> None:
    url, app = keyed
    open_routes = [r.path for r in app.routes if isinstance(r, APIRoute) and r.path in FREE]
    for path in [*open_routes, "/page/page.js"]:
        assert httpx.get(url + path).status_code == 200, path


@pytest.mark.parametrize("key", ["", "word\n", "word,", ",word", "two words", "wört", "word\r"])
def test_a_key_that_nobody_could_send_is_refused_at_start(
    key: str, config: Config, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMEL_RAY_API_KEY", key)
    with pytest.raises(ValueError, match="GEMEL_RAY_API_KEY holds"):
        built(config, workspace, echoed)


def test_each_of_several_keys_opens_and_no_other(
    config: Config, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMEL_RAY_API_KEY", "one,two")
    with listening(create(built(config, workspace, echoed))) as url:
        for key, status in (("one", 200), ("two", 200), ("one,two", 401), ("x", 401)):
            sent = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{url}/v1/examples", headers=sent).status_code == status


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    limits = Online(hosts=("link.example.org",))
    with listening(create(endpoint(tmp_path_factory.mktemp("open"), echoed, limits))) as url:
        yield url


def refused(answer: httpx.Response, status: int, kind: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["kind"] == kind


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "a b.c"])
def test_a_name_that_is_not_ours_is_refused(url: str, host: str) -> None:
    """A name that somebody else can make lead here (DNS rebinding)."""
    for path in ("/", "/v1/examples", "/metrics"):
        refused(httpx.get(url + path, headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]:8000", "localhost:8000", "gemel-ray-serve-svc", "LINK.example.org.:443"]
)
def test_a_request_by_one_of_our_names_is_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "https://evil.example/link.example.org", ""],
)
def test_a_page_of_another_site_may_not_ask(url: str, origin: str) -> None:
    sent = {"Origin": origin}
    refused(httpx.post(f"{url}/v1/link", files={"text": (None, "x")}, headers=sent), 403, "forbidden")


def test_its_own_page_may_ask(url: str) -> None:
    for origin in (url, "https://link.example.org"):
        assert httpx.post(f"{url}/v1/link", json=ONE, headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_taken_with_its_content_type_only(url: str, kind: str | None) -> None:
    """What a form of another site can send without asking first."""
    sent = {"Content-Type": kind} if kind else {}
    refused(httpx.post(f"{url}/v1/link", content=json.dumps(ONE), headers=sent), 400, "bad_request")


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/v1/examples", "/nothing"])
def test_answers_may_not_be_framed(url: str, path: str) -> None:
    headers = httpx.get(url + path).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"


def test_an_address_is_one_caller_and_so_is_a_network_of_ipv6(tmp_path: Path) -> None:
    from gemel_ray.serving.door import caller

    def at(host: str) -> dict[str, Any]:
        return {"client": (host, 1)}

    assert caller(at("2001:db8:1:2::1")) == caller(at("2001:db8:1:2:ffff::9"))
    assert caller(at("2001:db8:1:3::1")) != caller(at("2001:db8:1:2::1"))
    assert caller(at("::ffff:1.2.3.4")) == caller(at("1.2.3.4")) == "1.2.3.4"
