"""The pages in a real browser before any model is asked: ways in, Stop, plain words, and what they load.

The endpoint is the real one; its linker is the test's own, so that it can be slow when it has to be.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from browser import Page, chromium, found
from live import listening
from PIL import Image
from serving_cases import echoed, endpoint

from gemel_ray.segments import Online
from gemel_ray.serving.app import create
from gemel_ray.serving.linker import Reply

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="there is no Chromium on this machine"),
]
CHOSEN = "document.getElementById('preview').naturalWidth"


class Watched:
    """A linker that keeps the pictures it is given, and takes its time where it is asked to."""

    def __init__(self) -> None:
        self.pictures: list[bytes | None] = []
        self.waiting, self.go = threading.Event(), threading.Event()

    async def __call__(self, table: pa.Table) -> Reply:
        self.pictures.append(table["image"][0].as_py())
        if table["text"][0].as_py() == "Take your time.":
            self.waiting.set()
            await asyncio.to_thread(self.go.wait, 60)
        return await echoed(table)


@pytest.fixture(scope="module")
def linker() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def url(linker: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    served = endpoint(tmp_path_factory.mktemp("served"), linker, Online(megabytes=1.0))
    with listening(create(served)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Page:
    browser.look(1280, 900)
    browser.open(url)
    browser.until("document.querySelectorAll('#examples button').length > 0")
    browser.complaints.clear()
    return browser


def picture(size: tuple[int, int] = (60, 40), noise: bool = False) -> bytes:
    made = io.BytesIO()
    drawn = Image.effect_noise(size, 90) if noise else Image.new("RGB", size, "teal")
    drawn.save(made, "PNG")
    return made.getvalue()


def linked(page: Page, linker: Watched, text: str = "Adobe is here.") -> bytes | None:
    """The picture that arrives with the caption."""
    page.click("#text")
    page.write(text)
    page.click("#link")
    page.until("!['', 'Linking …'].includes(document.getElementById('said').innerText)")
    return linker.pictures[-1]


def test_a_picture_is_dropped(page: Page, linker: Watched, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(picture())
    page.drop("h1", tmp_path / "mug.png")  # anywhere on the page
    page.until(f"{CHOSEN} === 60")
    assert page.text("#name") == "mug.png"
    assert page.value("document.getElementById('drop').className") == "drop"
    assert linked(page, linker) == picture()
    assert page.complaints == []


def test_what_is_dropped_and_no_picture_is_named(page: Page, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("no picture")
    page.drop("#drop", tmp_path / "words.txt")
    page.until("document.getElementById('picture-fault').innerText === 'words.txt is not a picture.'")
    assert page.value("document.getElementById('chosen').hidden")
    assert page.value("location.pathname") == "/"  # the browser did not go to the file


def test_a_picture_is_pasted(page: Page, linker: Watched) -> None:
    """Into the caption, too, whose text it leaves alone."""
    page.click("#text")
    page.paste(picture((80, 40)))
    page.until(f"{CHOSEN} === 80")
    assert page.value("document.getElementById('text').value") == ""
    arrived = linked(page, linker)
    assert arrived is not None
    assert Image.open(io.BytesIO(arrived)).size == (80, 40)


def test_a_picture_can_be_taken_away_again(page: Page, linker: Watched, tmp_path: Path) -> None:
    (tmp_path / "mug.png").write_bytes(picture())
    page.drop("#drop", tmp_path / "mug.png")
    page.until(f"{CHOSEN} === 60")
    page.click("#remove")
    assert linked(page, linker) is None


def sent(page: Page, text: str) -> None:
    """A caption written and given to be linked."""
    page.click("#text")
    page.write(text)
    page.click("#link")


def test_a_picture_that_is_too_large_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(picture((1400, 1400), noise=True))
    page.drop("#drop", tmp_path / "large.png")
    page.until(f"{CHOSEN} === 1400")
    sent(page, "Adobe is here.")
    page.until("!document.getElementById('fault').hidden")
    assert "the request is larger than 1,048,576 bytes" in page.text("#fault")


def test_stop_gives_the_answer_up_and_the_page_goes_on(page: Page, linker: Watched) -> None:
    """Of the page; that the work ends when a client leaves is Ray Serve's part (test_online.py)."""
    sent(page, "Take your time.")
    assert linker.waiting.wait(10)
    assert page.text("#link") == "Stop"
    page.click("#link")
    page.until("document.getElementById('said').innerText === 'Stopped.'")
    assert page.text("#link") == "Link"
    assert page.value("document.getElementById('fault').hidden")
    linked(page, linker, " Adobe is here.")
    linker.go.set()


def test_a_server_that_has_gone_is_told(browser: Page, tmp_path: Path) -> None:
    with listening(create(endpoint(tmp_path, echoed, Online()))) as address:
        browser.open(address)
        browser.until("document.querySelectorAll('#examples button').length > 0")
    sent(browser, "Adobe is here.")
    browser.until("!document.getElementById('fault').hidden")
    assert "The server cannot be reached. Is it still running?" in browser.text("#fault")


def test_the_api_is_described(page: Page, url: str) -> None:
    api = httpx.get(f"{url}/openapi.json").json()
    page.click("nav a")
    page.until("location.pathname === '/docs' && !!document.querySelector('#api[aria-busy=false]')")
    routes = page.value("[...document.querySelectorAll('article h3')].map(h => h.innerText.trim())")
    for path, methods in api["paths"].items():
        for method in methods:
            assert any(r.split() == [method.upper(), path] for r in routes), (method, path)
    assert set(api["components"]["schemas"]) <= set(routes)
    fields = page.value("[...document.querySelectorAll('#Options dt code')].map(e => e.innerText)")
    assert fields == list(api["components"]["schemas"]["Options"]["properties"])
    assert "1 to 64" in page.text("#Options dl")
    said = page.value("[...document.querySelectorAll('pre')].map(e => e.innerText)")
    assert said[0].startswith(f"curl -s {url}/v1/link")
    page.look(360, 740)
    assert page.value("document.documentElement.scrollWidth") == 360
    assert page.complaints == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_no_page_loads_anything_from_another_place(browser: Page, url: str, path: str) -> None:
    browser.asked.clear()
    browser.open(url + path)
    browser.until("document.querySelectorAll('#examples button img, article').length > 2")
    browser.value("new Promise(done => setTimeout(done, 300))")
    assert f"{url}{path}" in browser.asked
    assert len(browser.asked) > 3
    assert [a for a in browser.asked if not a.startswith((f"{url}/", "data:", "blob:"))] == []
