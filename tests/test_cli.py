"""The command line as people type it: wrong words get the nearest right one and exit status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import DATA, write_links

from gemel_ray.arguments import parser
from gemel_ray.cli import _VERBS, main
from gemel_ray.commands import bench, configured, link
from gemel_ray.job import results
from gemel_ray.records import LINK

VERBS = (
    "demo",
    "build",
    "check",
    "link",
    "evaluate",
    "study",
    "train",
    "bench",
    "serve",
    "load",
    "kb",
    "doctor",
)
VERBS += ("import-gemel", "export-gemel", "lint-deploy")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        status: object = main(words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["lnk"], "did you mean link?"),
        (["link", "x", "--workspace", "w", "--output", "o", "--strct"], "did you mean --strict?"),
        (["link", "x", "--output", "o"], "--workspace"),
        (["kb", "lst"], "did you mean list?"),
        (["kb", "list", "--workspace", "w", "--jsn"], "did you mean --json?"),
        (["link", "x", "--workspace", "w", "--output", "o", "--nmes"], "gemel-ray link --help lists"),
        (
            ["link", "x", "--workspace", "w", "--output", "o", "--beams=1"],
            "did you mean --set generate.beams=VALUE?",
        ),
        (["build", "--entities", "e", "--output", "o", "--set", "beams=1"], "did you mean generate.beams?"),
        (
            ["build", "--entities", "e", "--output", "o", "--set", "generate.beam=1"],
            "did you mean generate.beams?",
        ),
        (["kb", "remove", "--workspace", "nowhere", "Q1"], "make one with gemel-ray build"),
        (
            ["build", "--entities", "e", "--output", "o", "--set", "retreive.by=image"],
            "did you mean retrieve?",
        ),
        (["build", "--entities", "e", "--output", "o", "--set", "retrieve.by=imge"], "did you mean image?"),
        (["build", "--entities", "e", "--output", "o", "--set", "generate.beams=many"], "a whole number"),
        (["build", "--entities", "e", "--output", "o", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["link", "x", "--workspace", "nowhere", "--output", "o"],
            "nowhere does not exist; make one with gemel-ray build",
        ),
        (["link", "x", "--workspace", ".", "--output", "o"], "it has no workspace.json"),
        (["evaluate", "nowhere", "--gold", __file__ + "l"], "there is no"),
        (["plan", "--pairs", "9", "--set", "nonsense.x=1"], "plan reads no settings: leave out --set"),
        (["check", "x", "--paper"], "check reads no settings: leave out --paper"),
        (["kb", "list", "--workspace", "w", "--set", "bank.names=0"], "leave out --set"),
        (["plan", "--pairs", "many"], "takes a number such as 50000000 or 5e7, not many"),
        (["plan", "--pairs", "9", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "--pairs", "9", "--rates", "r.json", "--gpu", "l4"], "leave out --gpu"),
        (["plan", "--pairs", "9", "--hours", "1", "--nodes", "2"], "leave out --nodes"),
        (["bench", "speed", "--pairs=9"], "bench speed measures without it: leave out --pairs"),
        (["bench", "scale", "--rounds=2"], "bench scale measures without it: leave out --rounds"),
        (["link", "x", "--workspace", "w", "--output", "o", "--reason", "x"], "give both"),
        (
            ["link", "x", "--workspace", "w", "--output", "o", "--set", "bank.ranker=0"],
            "bank.ranker: only a build reads this",
        ),
        (["serve", "--workspace", "w", "--set", "bank.names=0"], "bank.names: only a build reads this"),
    ],
)
def test_wrong_arguments_are_refused_with_a_hint(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint in refused(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        "bench speed a b --workspace w --json",
        "bench speed --workspace w a --json b",
        "bench --json speed --workspace w a b",
        "bench --workspace w --json -- speed a b",
    ],
)
def test_inputs_stand_before_and_after_options(words: str) -> None:
    options = parser({"bench": bench.add}).parse_args(words.split())
    assert (options.what, options.inputs, options.workspace, options.json) == (
        "speed",
        ["a", "b"],
        Path("w"),
        True,
    )


def test_the_verbs_are_those_people_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        told = capsys.readouterr().out
        assert "--config" in told
        assert "--set" in told


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["gemel-ray", version("gemel-ray")]


def test_who_reads_only_the_first_lines_sees_no_error() -> None:
    plan = f"{sys.executable} -m gemel_ray.cli plan --pairs 5e7"
    shown = subprocess.run(["bash", "-c", f"{plan} | true"], capture_output=True, text=True, check=True)
    assert shown.stderr == ""


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from gemel_ray.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_evaluate_counts_what_is_missing_wrong_or_nil(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Adobe and Google and Apple and Nokia and Intel"
    spans = {w: (text.index(w), text.index(w) + len(w)) for w in text.split(" and ")}
    gold = tmp_path / "gold.jsonl"
    mentions = [{"start": s, "end": e, "target": f"{w} Inc."} for w, (s, e) in spans.items()]
    del mentions[4]["target"]
    gold.write_text(json.dumps({"id": "d", "text": text, "mentions": mentions}))

    def row(word: str, status: str, entity: str | None) -> dict[str, object]:
        start, end = spans[word]
        found = [{"entity": e, "entity_id": e, "score": 0.0} for e in (entity, f"{word} Inc.") if e]
        base = dict.fromkeys(LINK.names) | {"document_id": "d", "mention_id": f"{start}-{end}"}
        return base | {"mention": word, "status": status, "entity": entity, "candidates": found}

    rows = [row("Adobe", "linked", "Adobe Inc."), row("Google", "linked", "Gogol"), row("Apple", "nil", None)]
    write_links(rows, tmp_path)
    report = tmp_path / "report.html"
    words = ["evaluate", str(tmp_path), "--gold", str(gold), "--json", "--report", str(report)]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mentions"] == 4  # Intel has no target
    assert figures["without_target"] == 1
    assert figures["accuracy"] == 0.25
    assert figures["among_candidates"] == 0.75
    assert figures["statuses"] == {"linked": 2, "nil": 1, "missing": 1}
    page = report.read_text()
    assert "<mark>Google</mark>" in page
    assert "should be Google Inc." in page
    assert "src=" not in page  # no pictures here, and never an address outside


@pytest.mark.parametrize(("before", "says"), [(None, False), ("other", True)])
def test_rows_of_earlier_runs_with_other_settings_are_counted(before: str | None, says: bool) -> None:
    """A job that is repeated with another workspace leaves the rows as they are."""
    counts = {"documents": 5, "rows": 5, "statuses": {"linked": 5}, "errors": {}, "measures": {}}
    summary = link._summary(cast("Any", counts | {"fingerprints": {"now": 2, before: 3}}), "now")
    assert ("3 of these rows are from earlier runs with another workspace" in summary) == says


@pytest.mark.slow
@pytest.mark.ray
def test_the_demo_shows_the_whole_graph(tmp_path: Path) -> None:
    """As `make demo` runs it, on a few documents."""
    command = [
        sys.executable,
        "-m",
        "gemel_ray.cli",
        "demo",
        "--output",
        str(tmp_path / "demo"),
        "--limit",
        "10",
    ]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stderr
    assert "right pictures, entities pictured in the examples" in told.stdout
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count('class="card"') == 10
    assert page.count("data:image/jpeg;base64") > 10  # the documents' pictures and the demonstrations'
    manifest = json.loads((tmp_path / "demo" / "linked" / "manifest.json").read_text())
    assert manifest["documents"] == 20
    assert manifest["statuses"] == {"linked": 20}
    links = pa.concat_tables(results.tables(tmp_path / "demo" / "linked"))
    names = {json.loads(line)["name"] for line in entities().read_text().splitlines()}
    assert set(links["entity"].to_pylist()) <= names
    assert pq.read_table(tmp_path / "demo" / "shuffled-pictures.parquet").num_rows == 10


def entities() -> Path:
    return DATA / "entities.jsonl"


def test_the_papers_settings_are_one_flag_away() -> None:
    """Over what a workspace carries, and under --set."""
    arguments = ["link", "in.jsonl", "--workspace", "w", "--output", "o", "--paper"]
    options = parser(_VERBS).parse_args([*arguments, "--set", "generate.beams=3"])
    config = configured(options, {"generate": {"score": "tree", "dtype": "float32"}})
    assert (config.generate.score, config.generate.length_penalty) == ("paper", 1.0)
    assert (config.generate.beams, config.generate.dtype) == (3, "float32")
    found = config.retrieve
    assert (found.by, found.demonstrations, found.names) == ("mention", 16, False)
    assert config.bank.names == 0
