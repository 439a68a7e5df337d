"""The page in a real browser, over the real endpoint: by mouse, by keyboard, narrow, and with errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Page, chromium, found
from files import DATA
from live import listening

from gemel_ray.client import Client
from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.serving.app import create, endpoint
from gemel_ray.serving.door import Door
from gemel_ray.serving.linker import Reply

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="there is no Chromium on this machine"),
]
ANSWERED = "!!document.querySelector('#answer[aria-busy=false] .card')"
ROWS = "JSON.parse(document.querySelector('#links pre').textContent).links"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, live_url: str) -> Iterator[Page]:
    """The page as it opens; a test during which its script complains has failed."""
    browser.look(1280, 900)
    browser.open(live_url)
    browser.until("document.querySelectorAll('#examples button').length > 0")
    browser.complaints.clear()
    yield browser
    assert browser.complaints == []


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Of the starter set: a caption of one mention, with its picture."""
    row: dict[str, Any] = pq.read_table(DATA / "test.parquet").slice(0, 1).to_pylist()[0]
    return row


def focused(page: Page) -> str:
    return str(page.value("document.activeElement.id || document.activeElement.innerText.trim()"))


def tab_to(page: Page, name: str) -> list[str]:
    """Press Tab until the element of that id has the focus; what had it on the way."""
    passed: list[str] = []
    while focused(page) != name:
        passed.append(focused(page))
        assert len(passed) < 40, passed
        page.press("Tab")
    return passed


def scores(row: dict[str, Any]) -> dict[str, float]:
    """Of the candidates, by name."""
    return {candidate["entity"]: candidate["score"] for candidate in row["candidates"]}


def answered(page: Page) -> list[dict[str, Any]]:
    """The rows of the answer shown."""
    page.until(ANSWERED)
    rows: list[dict[str, Any]] = page.value(ROWS)
    return rows


def test_a_picture_and_a_marked_word_are_linked(
    page: Page, live_url: str, document: dict[str, Any], tmp_path: Path
) -> None:
    """What is shown is what the endpoint says of the same picture, caption and mention."""
    (tmp_path / "flag.jpg").write_bytes(document["image"])
    page.give("#file", tmp_path / "flag.jpg")
    page.until("document.getElementById('preview').naturalWidth > 0")
    page.click("#text")
    page.write("AWS has a flag.")
    page.click("#text", clicks=2, where=(28, 22))  # the first word
    page.until("document.getElementById('mark').innerText === 'Mark “AWS”'")
    page.click("#mark")
    assert page.text("#mentions li").startswith("AWS")
    page.click("#link")
    row = answered(page)[0]
    with Client(live_url) as client:
        asked = client.link("AWS has a flag.", image=document["image"], mentions=[(0, 3)])[0]
        without = client.link("AWS has a flag.", mentions=[(0, 3)])[0]
    assert row.keys() == asked.keys()
    for name in (
        "mention_id",
        "start",
        "end",
        "status",
        "entity",
        "entity_id",
        "demonstrations",
        "fingerprint",
    ):
        assert row[name] == asked[name]
    assert scores(row) == pytest.approx(scores(asked), abs=1e-3)
    assert scores(row) != pytest.approx(scores(without), abs=1e-3)  # the picture had its say
    assert page.text(".headline h3") == row["entity"]
    assert page.text(".headline .probability").startswith(f"{row['probability']:.0%}".replace("%", " %"))
    shown = page.value("[...document.querySelectorAll('.bars .entity')].map(e => e.firstChild.data)")
    assert shown == [candidate["entity"] for candidate in row["candidates"]]
    for stage in ("detect", "encode", "retrieve", "assemble", "generate"):
        assert stage in page.text(".foot dl")


def test_demonstrations_stand_there_with_their_pictures(page: Page) -> None:
    page.click("#examples li:nth-child(1) button")
    row = answered(page)[0]
    page.until("[...document.querySelectorAll('.thumb img')].some(i => i.naturalWidth > 0)")
    page.until(
        "document.querySelectorAll('.shots b').length === document.querySelectorAll('.shots li').length"
    )
    targets = page.value("[...document.querySelectorAll('.shots b')].map(b => b.innerText)")
    assert len(targets) == min(4, len(row["demonstrations"]))


def test_the_shares_of_the_candidates_make_a_whole(page: Page) -> None:
    page.click("#examples li:nth-child(4) button")
    answered(page)
    widths = page.value("[...document.querySelectorAll('.bars i')].map(i => parseFloat(i.style.width))")
    assert sum(widths) == pytest.approx(100, abs=0.5)
    assert widths == sorted(widths, reverse=True)


def test_entities_of_one_name_share_its_probability_on_the_page_as_in_the_row(page: Page) -> None:
    twins = [{"entity": "Ann", "entity_id": i, "score": -0.1} for i in ("Q0", "Q7")]
    other = {"entity": "Rome", "entity_id": "Q2", "score": -1.1}
    row = json.dumps({"probability": 0.99, "candidates": [*twins, other]})
    made = page.value(f"import('/page/answer.js').then(module => [...module.names({row})])")
    assert made[0] == ["Ann", {"share": 0.99, "ids": ["Q0", "Q7"]}]
    assert made[1][1]["share"] == pytest.approx(0.99 / 2.71828, abs=1e-4)
    assert len(made) == 2


def test_the_keyboard_is_enough(page: Page) -> None:
    """In the page's order; before the mention is a character that Python and browsers count differently."""
    passed = tab_to(page, "text")
    assert passed.index("file") > 0
    page.write("\U0001f600 Adobe opened an office.")
    page.press("Home")
    page.press("ArrowRight", times=2)
    page.press("ArrowRight", "Shift", times=6)
    page.press("Tab")
    assert focused(page) == "mark"
    page.press("Enter")
    assert focused(page) == "text"
    assert page.text("#told") == "Adobe is marked as a mention."
    page.press("Enter", "Ctrl")
    row = answered(page)[0]
    assert (row["mention"], row["start"], row["end"]) == ("Adobe", 2, 7)
    assert page.text(".quote mark") == "Adobe"


def test_the_focus_can_be_seen(page: Page) -> None:
    for name in ("file", "text", "link"):
        tab_to(page, name)
        seen = page.value(
            "(e => getComputedStyle(e.id === 'file' ? document.getElementById('pick') : e).outlineStyle)"
            "(document.activeElement)"
        )
        assert seen == "solid", name


def test_every_field_and_button_has_a_name(page: Page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    asked = [
        n for n in tree if n.get("role", {}).get("value") in ("textbox", "button", "spinbutton", "combobox")
    ]
    assert len(asked) > 8
    assert [n["role"]["value"] for n in asked if not n.get("name", {}).get("value")] == []


def test_an_edit_moves_the_mentions_behind_it_and_gives_up_those_it_touches(page: Page) -> None:
    page.click("#text")
    page.write("Adobe met Google.")
    for start, end in ((0, 5), (10, 16)):
        page.value(f"document.getElementById('text').setSelectionRange({start}, {end})")
        page.until("!document.getElementById('mark').disabled")
        page.click("#mark")
    page.value("document.getElementById('text').setSelectionRange(2, 2)")
    page.write("oo")
    assert page.value("[...document.querySelectorAll('#behind mark')].map(m => m.textContent)") == ["Google"]


def test_without_a_mark_detect_proposes_and_the_user_may_keep(page: Page) -> None:
    page.click("#examples li:nth-child(6) button")
    assert [row["mention"] for row in answered(page)] == ["Adobe", "Google"]
    assert page.text("#keep") == "Keep the 2 found as mentions"
    page.click("#keep")
    assert page.value("document.querySelectorAll('#mentions li').length") == 2


def test_nil_is_an_answer(page: Page) -> None:
    page.value(
        "document.querySelector('.options').open = true, document.getElementById('threshold').value = '1', 0"
    )
    page.click("#examples li:nth-child(6) button")
    assert {row["status"] for row in answered(page)} == {"nil"}
    assert page.text(".headline h3") == "No entity fits well enough"
    assert page.text("#said").startswith("2 without an entity (NIL)")


def test_what_is_wrong_is_said_in_plain_words(page: Page, document: dict[str, Any], tmp_path: Path) -> None:
    page.click("#link")
    assert page.text("#text-fault") == "Write the caption first."
    assert focused(page) == "text"
    (tmp_path / "words.txt").write_text("no picture")
    page.give("#file", tmp_path / "words.txt")
    page.until("document.getElementById('picture-fault').innerText === 'words.txt is not a picture.'")
    (tmp_path / "cut.jpg").write_bytes(document["image"][:300])
    page.give("#file", tmp_path / "cut.jpg")
    page.click("#text")
    page.write("Adobe opened an office.")
    page.click("#link")
    page.until("!document.getElementById('fault').hidden")
    assert "cannot read the image (bytes): it is cut short" in page.text("#fault")
    assert page.value("document.querySelectorAll('.card').length") == 0
    said = [c for c in page.complaints if "400" in c and "/v1/link" in c]
    assert page.complaints == said  # the browser notes the refusal, and nothing else
    page.complaints.clear()


def test_foreign_text_stays_text(page: Page) -> None:
    page.click("#text")
    page.write('<img src=x onerror="window.hit = 1"> Adobe opened <b>an office</b>.')
    page.click("#link")
    answered(page)
    assert page.text(".quote").startswith('<img src=x onerror="window.hit = 1"> Adobe')
    assert page.value("window.hit === undefined && !document.querySelector('#links b:not(.shots b)')")


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_never_scrolls_sideways(page: Page, dark: bool) -> None:
    page.look(360, 740, dark)
    page.click("#text")
    page.write(f"Adobe {'w' * 80} and more.")
    page.value("document.querySelector('.options').open = true, 0")
    page.click("#link")
    answered(page)
    page.value("document.querySelectorAll('#links details').forEach(d => { d.open = true; }), 0")
    page.until("document.querySelectorAll('.shots b').length > 0")
    assert page.value("document.documentElement.scrollWidth") == 360


def test_a_server_that_wants_a_key_is_given_it(browser: Page, workspace: Workspace, config: Config) -> None:
    async def refused(table: pa.Table) -> Reply:
        raise AssertionError("nobody gets here")

    made = replace(endpoint(config, workspace, refused), door=Door(("open sesame",)))
    made.desk.readiness.succeeded()
    with listening(create(made)) as url:
        browser.open(url)
        browser.until("!document.getElementById('key-field').hidden")
        assert browser.value("document.querySelectorAll('#examples button').length") == 0
        browser.click("#key")
        browser.write("open sesame")
        browser.press("Tab")
        browser.until("document.querySelectorAll('#examples button').length === 6")
    browser.complaints.clear()


def test_nothing_comes_from_another_place(page: Page, live_url: str) -> None:
    addresses = page.value("performance.getEntriesByType('resource').map(e => e.name)")
    assert addresses
    assert [a for a in addresses if not a.startswith((live_url, "blob:"))] == [], json.dumps(addresses)
