"""The page of an evaluation, and the verb that writes it: whole, escaped, and alone."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import write_links
from PIL import Image

from gemel_ray.cli import main
from gemel_ray.records import LINK

EMPTY = {"meta", "img", "br", "path", "use", "rect", "circle", "line"}


class Nesting(HTMLParser):
    """Fails on what is closed in another order than it was opened; gathers text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.addresses = "", []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            while self.open[-1] in ("p", "td") and self.open[-1] != tag:
                self.open.pop()
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Gold with a picture, two runs that differ, training files and a knowledge base."""
    picture = io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(picture, "PNG")
    text = "<Ann> & Bob in Rome"
    mentions = [
        {"start": 1, "end": 4, "target": "Ann <b>", "type": "person"},
        {"start": 8, "end": 11, "target": "Bob & Co", "type": "company"},
        {"start": 90, "end": 99, "target": "Nobody", "type": "person"},  # its place is outside the text
    ]
    names = [f"d{i}" for i in range(6)]
    columns = {
        "id": names,
        "text": [f"{text} {i}" for i in range(6)],
        "image": [picture.getvalue()] * 6,
        "mentions": [mentions] * 6,
    }
    pq.write_table(pa.table(columns), tmp_path / "wikimel-dev.parquet")
    train = [{"text": "Bob", "mention": "Bob", "target": "Bob & Co", "golden": "Q2"}]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, train)))
    entities = [
        {"id": f"Q{i}", "name": n, "popularity": i} for i, n in enumerate(["Ann <b>", "Bob & Co", "Rome"])
    ]
    (tmp_path / "entities.jsonl").write_text("\n".join(map(json.dumps, entities)))
    for run, answer in (("ours", "Bob & Co"), ("theirs", "Rome")):
        rows = [row for name in names for row in (link(name, "1-4", "Ann <b>"), link(name, "8-11", answer))]
        write_links(rows, tmp_path / run)
    return tmp_path


def link(document: str, mention: str, answer: str) -> dict[str, Any]:
    candidates = [{"entity": n, "entity_id": "Q", "score": s} for n, s in ((answer, -0.1), ("Rome", -2.0))]
    row = dict.fromkeys(LINK.names) | {"document_id": document, "mention_id": mention, "status": "linked"}
    row |= {"entity": answer, "probability": 0.5 + int(document[1]) / 20, "fingerprint": answer}
    return row | {"candidates": candidates, "demonstrations": ["a/<i>"]}


def words(folder: Path, *more: str) -> list[str]:
    return ["evaluate", str(folder / "ours"), "--gold", str(folder / "wikimel-dev.parquet"), *more]


def everything(folder: Path) -> list[str]:
    known = ["--train", str(folder / "train.json"), "--entities", str(folder / "entities.jsonl")]
    return words(folder, *known, "--against", str(folder / "theirs"))


def page_of(folder: Path, arguments: list[str]) -> str:
    assert main([*arguments, "--report", str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text()


def test_the_page_is_whole_and_needs_nothing_else(folder: Path) -> None:
    text = page_of(folder, everything(folder))
    page = Nesting()
    page.feed(text)
    assert page.open == []
    assert [a for a in page.addresses if not a.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert re.findall(r"@import|url\((?!#)", text) == []
    for heading in ("Plots", "Figures", "Breakdowns", "Beside what was published", "Against the other run"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("<svg") == 7  # two of calibration, three breakdowns, two of popularity
    assert text.count('class="card"') == 18
    assert "Ann <b>" in page.text  # escaped: it is text
    assert "<b>&" not in text
    assert "McNemar" in page.text
    assert "86.3%" in page.text  # of the paper, beside ours with its number of entities
    assert "these gold files3" in page.text
    assert "whether both runs had the same knowledge is not known" in page.text


def test_a_mention_whose_place_is_wrong_is_shown_unmarked(folder: Path) -> None:
    first = page_of(folder, words(folder)).split('class="card"')[1]  # wrong ones stand first
    assert "<mark>" not in first
    assert "should be Nobody" in first
    assert "data:image/jpeg" in first


def test_a_link_where_there_should_be_none_is_shown_wrong(folder: Path) -> None:
    row = {"id": "d0", "text": "<Ann>", "mentions": [{"start": 1, "end": 4, "target_id": "NIL"}]}
    row["mentions"].append({"start": 0, "end": 1, "target": "A"})  # type: ignore[attr-defined]
    (folder / "gold.jsonl").write_text(json.dumps(row))
    text = page_of(folder, ["evaluate", str(folder / "ours"), "--gold", str(folder / "gold.jsonl")])
    assert "Ann &lt;b&gt;</b> — should be NIL" in text


def test_entities_of_one_name_share_its_probability_on_the_page_as_in_the_row(folder: Path) -> None:
    twins = [{"entity": "Ann <b>", "entity_id": i, "score": -0.1} for i in ("Q0", "Q7")]
    other = {"entity": "Rome", "entity_id": "Q2", "score": -0.1 + math.log(0.01 / 0.99)}
    row = link("d0", "1-4", "Ann <b>") | {"probability": 0.99, "candidates": [*twins, other]}
    write_links([row], folder / "twins")
    text = page_of(folder, ["evaluate", str(folder / "twins"), *words(folder)[2:]])
    assert re.findall(r'<span title="([^"]*)">([^<]*)</span>\s*<i [^>]*></i><span>([^<]*)</span>', text) == [
        ("Q0, Q7", "Ann &lt;b&gt;", "99.0%"),
        ("Q2", "Rome", "1.0%"),
    ]


def test_what_is_not_known_leaves_no_empty_section(folder: Path) -> None:
    (folder / "wikimel-dev.parquet").rename(folder / "photos.parquet")
    text = page_of(folder, ["evaluate", str(folder / "ours"), "--gold", str(folder / "photos.parquet")])
    assert "published" not in text
    assert "other run" not in text
    assert text.count("<svg") == 2


def test_json_has_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*everything(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mentions"] == 18
    assert figures["statuses"] == {"linked": 12, "missing": 6}
    assert figures["breakdowns"]["dataset"]["wikimel"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["entities"] == 3
    assert figures["baseline"]["accuracy"]["mentions"] == 18
    assert figures["comparison"]["won"] == 6
    assert len(figures["comparison"]["disagreements"]) == 6


def test_the_table_tells_it_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(everything(folder)) == 0
    told = capsys.readouterr().out
    for line in ("baseline without a model", "Accuracy by type", "expected calibration error", "McNemar"):
        assert line in told
    assert "'Bob': Bob & Co here, Rome there; should be Bob & Co" in told


@pytest.mark.parametrize(("more", "reason"), [
    (["--train", "nowhere.json"], "there is no nowhere.json"),
    (["--workspace", "nowhere"], "nowhere does not exist; make one with gemel-ray build"),
    (["--entities", "FOLDER/empty.jsonl"], "empty.jsonl holds no entity"),
    (["--against", "FOLDER"], "holds no links"),
])  # fmt: skip
def test_what_the_user_can_mend_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], reason: str
) -> None:
    (folder / "empty.jsonl").write_text("{}\n")
    assert main(words(folder, *(word.replace("FOLDER", str(folder)) for word in more))) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert len(told.splitlines()) == 1
