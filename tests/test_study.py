"""The study: what its variants change and leave alone, what its cells are, and one small study for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import DATA
from PIL import Image

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.readers import documents
from gemel_ray.study.cells import GROUPS
from gemel_ray.study.run import take_over
from gemel_ray.study.table import lines, markdown
from gemel_ray.study.variants import VARIANTS, digest, have_pictures, others, sample, write
from gemel_ray.study.workspaces import copy_name


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return sample([str(DATA / "test.parquet")], 30, seed=0)


def again(rows: list[dict[str, Any]], variant: str, folder: Path) -> list[dict[str, Any]]:
    """The documents as link will read them."""
    write(rows, variant, folder / "variant.parquet")
    return [row for table in documents(str(folder / "variant.parquet")) for row in table.to_pylist()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_its_own_gold(rows: list[dict[str, Any]], variant: str, tmp_path: Path) -> None:
    """Ids, targets and their order stay, whatever is spoilt."""
    changed = again(rows, variant, tmp_path)
    for before, after in zip(rows, changed, strict=True):
        assert after["error"] is None
        assert after["document_id"] == before["document_id"]
        assert [m["target"] for m in before["given"]] == [m["target"] for m in after["given"]]


@pytest.mark.parametrize(
    ("variant", "text", "mention", "picture"),
    [
        ("clean", False, False, False),
        ("shuffled", False, False, True),
        ("blind", False, False, True),
        ("damaged", False, False, True),
        ("caption-typos", True, False, False),
        ("mention-typos", True, True, False),
    ],
)
def test_a_variant_changes_what_it_says(
    rows: list[dict[str, Any]], tmp_path: Path, variant: str, text: bool, mention: bool, picture: bool
) -> None:
    changed = again(rows, variant, tmp_path)
    pairs = list(zip(rows, changed, strict=True))
    assert any(a["text"] != b["text"] for a, b in pairs) == text
    assert all(len(a["text"]) == len(b["text"]) for a, b in pairs)
    mentions = [
        (m["mention"], n["mention"]) for a, b in pairs for m, n in zip(a["given"], b["given"], strict=True)
    ]
    assert all(m != n for m, n in mentions) == mention
    assert any(m != n for m, n in mentions) == mention
    assert all(a["image"] != b["image"] for a, b in pairs) == picture
    assert again(rows, variant, tmp_path) == changed  # the same in every run


@pytest.mark.parametrize(("variant", "words"), [
    ("respelled", ["Dr Anna Kristof von Veber", "IBM", "Olaa"]),
    ("capitals", ["DR ANNA CHRISTOPH VON WEBER", "IBM", "OLA"]),
    ("last-word", ["Weber", "IBM", "Ola"]),
    ("initials", ["DACvW", "IBM", "Ola"]),
])  # fmt: skip
def test_mentions_are_written_otherwise_in_their_places(
    tmp_path: Path, variant: str, words: list[str]
) -> None:
    text = "At IBM: Dr Anna Christoph von Weber, and Ola."
    asked = [{"mention": m, "target": m} for m in ("Dr Anna Christoph von Weber", "IBM", "Ola")]
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps({"id": "a", "text": text, "mentions": asked}))
    (row,) = again(sample([str(file)], 0, seed=0), variant, tmp_path)
    assert [m["mention"] for m in row["given"]] == words
    assert [m["target"] for m in row["given"]] == [m["mention"] for m in asked]
    assert row["text"] == f"At {words[1]}: {words[0]}, and {words[2]}."


def test_a_slip_is_one_letter_and_accents_are_lost(tmp_path: Path) -> None:
    names = ["Zoë Kravitz", "Renée Zellweger", "Łódź", "Al", "Weber"]
    lines = [{"id": n, "text": f"{n} came.", "mentions": [{"start": 0, "end": len(n)}]} for n in names]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = [row for table in documents(str(file)) for row in table.to_pylist()]
    slipped = [row["text"] for row in VARIANTS["mention-slips"](rows)]
    assert slipped[3] == "Al came."
    for name, text in zip(names, slipped, strict=True):
        said = text.removesuffix(" came.")
        assert said[0] == name[0]
        assert abs(len(said) - len(name)) <= 1
        assert said != name or name == "Al"
    plain = [row["text"] for row in VARIANTS["without-accents"](rows)]
    assert plain[:2] == ["Zoe Kravitz came.", "Renee Zellweger came."]


def test_shuffled_pictures_are_the_same_pictures(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    changed = again(rows, "shuffled", tmp_path)
    assert sorted(r["image"] for r in changed) == sorted(r["image"] for r in rows)


def test_a_picture_that_cannot_be_damaged_stays(tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    lines = [
        {
            "id": name,
            "text": "Apple",
            "image": f"{name}",
            "mentions": [{"start": 0, "end": 5, "target": "Apple"}],
        }
        for name in ("words.jpg", "red.png")
    ]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    broken, whole = again(sample([str(file)], 0, seed=0), "damaged", tmp_path)
    assert broken["image_address"].endswith("words.jpg")
    assert whole["image"][:2] == b"\xff\xd8"


def test_a_sample_leaves_out_what_has_no_target(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "text": "Apple", "mentions": [{"start": 0, "end": 5, "target": "Apple"}]},
        {"id": "b", "text": "Apple", "mentions": [{"start": 0, "end": 5}]},
        {"id": "c", "text": ""},
    ]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = sample([str(file)], 0, seed=0)
    assert [r["document_id"] for r in found] == ["a"]
    assert not have_pictures(found)
    keyed = [{"image": None, "image_address": None, "image_key": "7.jpg"}]
    assert have_pictures(keyed, features=True)
    assert not have_pictures(keyed)
    file.write_text(json.dumps(lines[2]))
    with pytest.raises(ValueError, match="no mention with a target"):
        sample([str(file)], 0, seed=0)


def test_documents_that_are_measured_choose_nothing(tmp_path: Path) -> None:
    """Of files that are both gold and dev, only the documents that are not measured are dev."""
    lines = [
        {"id": f"{i}", "text": f"Apple {i // 2}", "mentions": [{"start": 0, "end": 5, "target": "Apple"}]}
        for i in range(8)
    ]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    measured = sample([str(file)], 2, seed=0)
    left = others([str(file)], measured)
    assert left
    assert {row["text"] for row in left}.isdisjoint(row["text"] for row in measured)
    assert len(left) == 8 - 2 * len({row["text"] for row in measured})
    assert digest(measured) != digest(left)
    assert digest(measured) == digest(sample([str(file)], 2, seed=0))


def a_row(group: str, cell: str, **more: Any) -> dict[str, Any]:
    figure = {"value": 0.9, "interval_95": [0.85, 0.95], "mentions": 100}
    apart = {"value": -0.021, "interval_95": [-0.05, 0.008], "mentions": 100}
    row = {"group": group, "cell": cell, "settings": [], "variant": "clean", "run": "a", "mentions": 100}
    row |= {"accuracy": figure, "among_candidates": figure, "difference": apart, "mcnemar_p": 0.25}
    row |= {"targets": None, "asked": 0.12, "computed": 5.6, "requests": 0.0, "seconds": 30.0}
    return row | {"processor": {"encode": 1.5, "rest": 0.25}, "pace": 1.2, "making": None} | more


def a_study(**more: Any) -> Any:
    machine = {"cores": 2, "processor": "x86_64", "memory_gib": 24.2, "gpus": [], "commit": "abc1234"}
    study = {"gold": ["a/dev.json"], "documents": 90, "workspace": "kb", "machine": machine}
    return study | {"base": a_row("", "as configured"), "cells": [], "left_out": [], "failed": []} | more


def test_a_table_says_what_is_chance_and_what_a_row_costs() -> None:
    rows = [a_row("parts", "without a"), a_row("parts", "without b", pace=None, processor={}, making=61.4)]
    study = a_study(cells=rows, failed=[{"group": "parts", "cell": "without c", "why": "no room"}])
    base, first, second = [line for line in lines(study) if line.startswith("  ")][1:]
    assert base.split()[:2] == ["as", "configured"]
    figures = ["90.0%", "85.0%", "to", "95.0%", "-2.1", "-5.0", "to", "+0.8", "0.25"]
    assert first.split() == ["without", "a", *figures, "12%", "6", "1.8", "1.20", "-"]
    assert second.split()[-3:] == ["-", "-", "61"]
    assert "failed: parts: without c: no room" in lines(study)
    page = markdown(study)
    assert "90 documents of dev.json, 100 mentions; 2 cores (x86_64), 24 GiB, no GPU, commit abc1234" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[-2].startswith("| without a | 90.0% | 85.0% to 95.0% | -2.1 | -5.0 to +0.8 |")


def test_rows_of_other_groups_stay_if_the_base_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    before = a_study(cells=[a_row("noise", "clean"), a_row("parts", "without a")])
    file.write_text(json.dumps(before))
    now = a_study(machine={})
    take_over(file, now, ["parts"])
    assert [row["cell"] for row in now["cells"]] == ["clean"]
    assert now["machine"] == before["machine"]
    other = a_study(base=a_row("", "as configured", run="b"))
    take_over(file, other, ["parts"])
    assert other["cells"] == []


@pytest.mark.parametrize(
    "settings", [c.settings for g in GROUPS.values() for c in g], ids=lambda s: " ".join(s) or "as configured"
)
def test_every_cell_is_a_configuration(settings: tuple[str, ...]) -> None:
    assert isinstance(load(None, {}, settings), Config)


def test_cells_of_a_group_differ() -> None:
    for name, cells in GROUPS.items():
        ways = [(load(None, {}, c.settings).fingerprint(), c.variant, copy_name(c)) for c in cells]
        assert len(set(ways)) == len(ways), name


@pytest.mark.slow
@pytest.mark.ray
def test_a_small_study_has_its_figures_and_links_nothing_the_second_time(
    workspace_folder: Path, config: Config, tmp_path: Path, capsys: Any
) -> None:
    """Two ways of linking twelve pictures; the second time nothing is linked. An entity that gold names
    otherwise is recognised by its id."""
    gold = tmp_path / "gold.parquet"
    examples = pq.read_table(DATA / "train.parquet").slice(0, 240)["mentions"].to_pylist()
    shown = {mention["target"] for row in examples for mention in row}
    test = pq.read_table(DATA / "test.parquet")
    known = [i for i, row in enumerate(test["mentions"].to_pylist()) if row[0]["target"] in shown]
    ids = {one["name"]: one["id"] for one in map(json.loads, (DATA / "entities.jsonl").open())}
    rows = test.take(known[:: len(known) // 12][:12]).to_pylist()  # of brands that the examples show
    for mention in (mention for row in rows for mention in row["mentions"]):
        mention |= {"target": f"{mention['target']}, as it once was", "target_id": ids[mention["target"]]}
    pq.write_table(pa.Table.from_pylist(rows), gold)
    own = [f"generate.dtype={config.generate.dtype}", "generate.length=1024", "retrieve.demonstrations=4"]
    arguments = ["study", "--gold", str(gold), "--workspace", str(workspace_folder), "--only", "pictures"]
    arguments += ["--output", str(tmp_path / "study"), *(a for s in own for a in ("--set", s))]
    from gemel_ray.study import cells

    kept = cells.GROUPS["pictures"]
    # Right pictures, which is the base, others', and a cell that fails: no job can be so.
    cells.GROUPS["pictures"] = (cells.Cell("impossible", ("retrieve.nearest=99",)), *kept[:2])
    try:
        assert main(arguments) == 1
        first = capsys.readouterr().out
        failed = json.loads((tmp_path / "study" / "study.json").read_text())["failed"]
        assert [row["cell"] for row in failed] == ["impossible"], failed
        began = sorted((tmp_path / "study" / "runs").glob("*/manifest.json"))
        stamps = [f.stat().st_mtime_ns for f in began]
        assert len(began) == 2
        assert main(arguments) == 1
    finally:
        cells.GROUPS["pictures"] = kept
    assert capsys.readouterr().out == first
    assert [f.stat().st_mtime_ns for f in began] == stamps
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    right, wrong = found["cells"]
    assert right["run"] == found["base"]["run"]
    assert right["difference"]["value"] == 0
    assert wrong["accuracy"]["value"] < right["accuracy"]["value"]
    assert [row["cell"] for row in found["failed"]] == ["impossible"]
    assert "retrieve.nearest" in found["failed"][0]["why"]
    for row in found["cells"]:
        assert row["processor"].keys() == {"detect", "encode", "retrieve", "assemble", "generate"} | (
            row["processor"].keys() & {"rest"}
        )
        assert row["processor"]["generate"] > 0
        assert row["asked"] == 1  # no ranker
    assert right["pace"] == 1
    for name in ("study.html", "study.md"):
        assert "of another caption" in (tmp_path / "study" / name).read_text()
    assert main(["prefix" if a == "pictures" else a for a in arguments]) == 0  # nothing that can be measured
    later = json.loads((tmp_path / "study" / "study.json").read_text())
    assert later["cells"] == found["cells"]
    assert {row["group"] for row in later["left_out"]} == {"prefix"}


def test_an_unknown_group_is_named(workspace_folder: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["study", "--gold", str(DATA / "test.parquet"), "--workspace", str(workspace_folder)]
    assert main([*arguments, "--output", str(tmp_path), "--only", "colour"]) == 2
    assert "no group colour" in capsys.readouterr().err
