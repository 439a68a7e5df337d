"""A workspace whose vectors are on a Qdrant server: asked first, recorded, one collection a build. The server
is qdrant-client's local mode behind HTTP; models, tree, bank and command are real."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from live import answering, free_port
from qdrant_client import QdrantClient
from qdrant_server import Imitation, builds, serving

from gemel_ray.cli import main
from gemel_ray.knowledge import writing
from gemel_ray.knowledge.server import Server
from gemel_ray.settings import Vectors as Options

ENTITIES = [{"id": "Q3", "name": "Paris", "aliases": ["City of Light"]}, {"id": "Q4", "name": "New York"}]
SOLVED = {"id": "e1", "text": "Paris", "mention": "Paris", "target": "Paris", "golden": "Q3"}
Served = tuple[str, type[Imitation]]
Say = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[Served]:
    with serving() as served:
        yield served


def command(verb: str, *arguments: str, address: str = "") -> int:
    return main([*verb.split(), *arguments, "--set", f"vectors.address={address}"])


def building(folder: Path, address: str = "", *more: str) -> int:
    kb, solved = folder / "kb.jsonl", folder / "solved.json"
    kb.write_text("\n".join(map(json.dumps, ENTITIES)))
    solved.write_text(json.dumps(SOLVED))
    given = ("--entities", str(kb), "--demonstrations", str(solved), "--output", str(folder / "workspace"))
    return command("build", *given, *more, address=address)


def facts(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "workspace" / "workspace.json").read_text())
    return read


def linking(folder: Path, address: str) -> int:
    (folder / "in.jsonl").write_text(json.dumps({"id": "d", "text": "In Paris."}))
    given = (
        str(folder / "in.jsonl"),
        "--workspace",
        str(folder / "workspace"),
        "--output",
        str(folder / "out"),
    )
    return command("link", *given, "--dry-run", address=address)


def adding(folder: Path, address: str, name: str = "Rome") -> int:
    given = ("--workspace", str(folder / "workspace"), "--id", f"Q-{name}", "--name", name)
    return command("kb add", *given, address=address)


def led_to(answers: type[Imitation], name: str = "bank") -> str:
    (led,) = [a.collection_name for a in answers.local.get_aliases().aliases if a.alias_name == name]
    return str(led)


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_not_qdrant_is_named_so(tmp_path: Path, capsys: Say) -> None:
    with answering(Page) as address:
        assert building(tmp_path, f"{address}/bank") == 2
    assert "is not a Qdrant server" in capsys.readouterr().err


def test_an_address_where_nobody_answers_is_named_with_what_to_do(
    tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemel_ray.knowledge.vector_stores.SHORT_WAIT", 0.1 / 60)
    assert building(tmp_path, "http://127.0.0.1:9/bank") == 2
    said = capsys.readouterr().err
    assert "no Qdrant server answers at http://127.0.0.1:9" in said
    assert "start it, or correct vectors.address" in said


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"key": "sesame"},
        "",
        "refuses to be asked without a key (Must provide an API key): set QDRANT_API_KEY",
    ),
    ({"key": "sesame"}, "wrong", "refuses the key in QDRANT_API_KEY"),
    (
        {"key": "sesame", "reads_only": True},
        "sesame",
        "refuses this with the key in QDRANT_API_KEY (Write access",
    ),
    (
        {"version": "1.15.4"},
        "",
        "has the version 1.15.4, and qdrant-client 1.20.0 needs 1.16 or later: update",
    ),
    ({"version": "2.0.0"}, "", "has the version 2.0.0"),
]


@pytest.mark.parametrize(("state", "key", "sentence"), REFUSALS)
def test_a_refusal_comes_before_the_work_in_one_sentence(
    state: dict[str, Any], key: str, sentence: str, server: Served, tmp_path: Path, capsys: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in state.items():
        setattr(server[1], name, value)
    monkeypatch.setenv("QDRANT_API_KEY", key)
    monkeypatch.setattr("gemel_ray.knowledge.build.encoded", None)  # nothing was encoded
    assert building(tmp_path, f"{server[0]}/bank") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert builds(server[1].local, "bank") == []
    assert not (tmp_path / "workspace").exists()


def test_a_server_two_minor_versions_away_is_used_and_that_is_said(
    server: Served, tmp_path: Path, capsys: Say
) -> None:
    server[1].version = "1.18.3"
    assert building(tmp_path, f"{server[0]}/bank") == 0
    assert "has the version 1.18.3, more than one minor version from" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_key_over_http_prints_no_warning(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server[1].key = "sesame"
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    monkeypatch.setattr(writing, "_POINTS", 1)
    assert building(tmp_path, f"{server[0]}/bank") == 0
    text = (tmp_path / "workspace" / "workspace.json").read_text()
    assert "sesame" not in text
    assert "127.0.0.1" not in text


def test_a_workspace_knows_that_its_vectors_are_on_a_server(
    server: Served, tmp_path: Path, capsys: Say
) -> None:
    address = f"{server[0]}/bank"
    assert building(tmp_path, address) == 0
    (collection,) = builds(server[1].local, "bank")
    assert facts(tmp_path)["collection"] == collection == led_to(server[1])
    assert linking(tmp_path, address) == 0
    capsys.readouterr()
    for verb in (linking, adding):
        assert verb(tmp_path, "") == 2
        said = capsys.readouterr().err
        assert f"its vectors are in collection {collection} on a Qdrant server: set vectors.address" in said
        assert verb(tmp_path, f"{server[0]}/other") == 2
        assert (
            f"in collection {collection}, not at vectors.address={server[0]}/other" in capsys.readouterr().err
        )
    assert not list((tmp_path / "workspace" / "versions").glob("[0-9]*"))
    server[1].local.delete_collection(collection)
    assert linking(tmp_path, address) == 2
    assert f"{collection}, which the Qdrant server at {server[0]} has not" in capsys.readouterr().err


def test_one_whose_vectors_lie_in_it_refuses_an_address(server: Served, tmp_path: Path, capsys: Say) -> None:
    assert building(tmp_path) == 0
    for verb in (linking, adding):
        assert verb(tmp_path, f"{server[0]}/bank") == 2
        assert "vectors lie in it, not on a server: empty vectors.address" in capsys.readouterr().err
    assert adding(tmp_path, "") == 0


def test_a_collection_is_dropped_when_no_version_uses_it(server: Served, tmp_path: Path, capsys: Say) -> None:
    address, (_, answers) = f"{server[0]}/bank", server
    assert building(tmp_path, address) == 0
    assert [adding(tmp_path, address, name) for name in ("Rome", "Oslo")] == [0, 0]
    versions = tmp_path / "workspace" / "versions"
    first, second = (json.loads((versions / v / "workspace.json").read_text())["collection"] for v in "12")
    three = builds(answers.local, "bank")
    assert three == sorted({facts(tmp_path)["collection"], first, second})
    assert led_to(answers) == second
    shutil.rmtree(versions / "1")
    assert adding(tmp_path, address, "Bern") == 0
    left = builds(answers.local, "bank")
    assert first not in left
    assert len(left) == 3
    assert building(tmp_path, address, "--replace") == 0
    assert builds(answers.local, "bank") == [facts(tmp_path)["collection"]] == [led_to(answers)]


def test_a_change_without_new_vectors_keeps_the_collection(server: Served, tmp_path: Path) -> None:
    """The names of the knowledge base are no examples, so the bank is the same."""
    address = f"{server[0]}/bank"
    assert building(tmp_path, address, "--set", "bank.names=0") == 0
    assert adding(tmp_path, address) == 0
    made = json.loads((tmp_path / "workspace" / "versions" / "1" / "workspace.json").read_text())
    assert [made["collection"]] == builds(server[1].local, "bank") == [facts(tmp_path)["collection"]]
    assert linking(tmp_path, address) == 0


def failing(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """The next build's vectors are written, and what follows fails."""
    index = writing.index

    def then(*arguments: Any) -> Any:
        index(*arguments)
        before()
        raise OSError("No space left on device")

    monkeypatch.setattr("gemel_ray.knowledge.build.index", then)


def test_a_failed_build_blocks_no_other(
    server: Served, tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, answers = f"{server[0]}/bank", server[1]
    assert building(tmp_path, address) == 0
    with monkeypatch.context() as patch:
        failing(patch, lambda: None)
        assert building(tmp_path, address, "--replace") == 2
    assert "No space left" in capsys.readouterr().err
    assert builds(answers.local, "bank") == [facts(tmp_path)["collection"]] == [led_to(answers)]
    assert building(tmp_path, address, "--replace") == 0


def test_what_a_killed_build_left_is_said_and_after_a_day_dropped(
    server: Served, tmp_path: Path, capsys: Say
) -> None:
    address, local = f"{server[0]}/bank", server[1].local
    old, young, strange = "bank-00000000000a", "bank-00000000000b", "bank-of-another"
    for name, hours in ((old, 25), (young, 1)):
        begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * hours))
        local.create_collection(name, {}, metadata={"gemel_ray": begun})
    local.create_collection(strange, {})
    assert building(tmp_path, address) == 0
    said = capsys.readouterr().err
    assert f"collection {old} of the Qdrant server was begun at" in said
    assert "never completed: dropped" in said
    assert f"collection {young} of the Qdrant server was begun at" in said
    names = {c.name for c in local.get_collections().collections}
    assert names == {young, strange, facts(tmp_path)["collection"]}


def test_a_server_that_was_away_is_waited_for_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemel_ray.knowledge.server._QUIET", 0.5)
    port, local = free_port(), QdrantClient(":memory:")
    local.create_collection("bank-1", {})
    server = Server(Options(address=f"http://127.0.0.1:{port}/bank"), 1)
    back = ExitStack()
    later = threading.Timer(1.0, lambda: back.enter_context(serving(port, local)))
    with back:
        later.start()
        assert server.has("bank-1")
    first, last = (record.getMessage() for record in caplog.records)
    assert f"no Qdrant server answers at http://127.0.0.1:{port}" in first
    assert "waiting up to 1 min" in first
    assert last.endswith("answers again")


def test_a_collection_that_is_no_builds_is_left_alone(server: Served, tmp_path: Path, capsys: Say) -> None:
    server[1].local.create_collection("bank", {})
    assert building(tmp_path, f"{server[0]}/bank") == 2
    assert "has a collection bank, which is not a build's: end vectors.address" in capsys.readouterr().err
    assert server[1].local.collection_exists("bank")


def test_a_strangers_workspace_drops_nothing(server: Served, tmp_path: Path, capsys: Say) -> None:
    """What it records is dropped only where it is called as builds under our own address are."""
    address = f"{server[0]}/bank"
    server[1].local.create_collection("customers", {})
    assert building(tmp_path, address) == 0
    file = tmp_path / "workspace" / "workspace.json"
    file.write_text(json.dumps(facts(tmp_path) | {"collection": "customers"}))
    assert building(tmp_path, address, "--replace") == 0
    assert server[1].local.collection_exists("customers")
    assert (
        "collection customers of a Qdrant server is used no more: delete it there" in capsys.readouterr().err
    )
