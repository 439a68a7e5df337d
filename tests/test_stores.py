"""Object stores as people meet them: a real S3 server, right and wrong keys, buckets and addresses."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from live import answering
from s3 import BUCKET, Server, serving, silent, use

from gemel_ray import stores
from gemel_ray.cli import main
from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.page import write_page
from gemel_ray.job.record import Record, write_manifest
from gemel_ray.job.worker import batch_counts, write_part
from gemel_ray.knowledge import remote
from gemel_ray.knowledge.remote import Shared, local_copy
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.readers import documents, files
from gemel_ray.records import LINK
from gemel_ray.storage import Folder, folder_at, keeps_writers_apart
from gemel_ray.stores import StoreError


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _reached(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, server.environment)


def line(name: str) -> bytes:
    return json.dumps({"id": name, "text": f"Adobe and {name}."}).encode() + b"\n"


def ids(addresses: list[str]) -> list[str]:
    return [i for a in addresses for t in documents(a) for i in t["document_id"].to_pylist()]


# Inputs


def test_inputs_are_found_by_name_folder_pattern_and_range(server: Server) -> None:
    for i in range(4):
        server.put(f"in/part-{i:02}.jsonl", line(f"d{i}"))
    server.put("in/notes.txt", b"none of it")
    named = [f"s3://{BUCKET}/in/part-{i:02}.jsonl" for i in range(4)]
    for asked in ("in", "in/*.jsonl", "in/part-{00..03}.jsonl"):
        found = files([f"s3://{BUCKET}/{asked}"])
        assert found == named
        assert ids(found) == ["d0", "d1", "d2", "d3"]
    assert files([named[2]]) == [named[2]]


def test_what_is_not_there_is_told_by_bucket_and_by_name(server: Server) -> None:
    server.put("there/a.jsonl", line("a"))
    for missing in (f"s3://{BUCKET}/nowhere.jsonl", f"s3://{BUCKET}/there/*.tar"):
        with pytest.raises(ValueError, match="there is no s3://captions/"):
            files([missing])
    with pytest.raises(StoreError, match=r"s3://nobodys/in/0\.jsonl: there is no bucket nobodys"):
        files(["s3://nobodys/in/{0..2}.jsonl"])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1, said
    return said


@pytest.fixture
def linking(workspace_folder: Path, tmp_path: Path) -> list[str]:
    return ["--workspace", str(workspace_folder), "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("role", ["input", "workspace", "output"])
def test_a_wrong_key_and_a_missing_bucket_are_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    workspace_folder: Path,
    tmp_path: Path,
    role: str,
) -> None:
    given = {"input": "in.jsonl", "workspace": str(workspace_folder), "output": str(tmp_path / "out")}

    def said(address: str) -> str:
        at = given | {role: address}
        return refused(capsys, "link", at["input"], "--workspace", at["workspace"], "--output", at["output"])

    assert "s3://nobodys/x.jsonl: there is no bucket nobodys" in said("s3://nobodys/x.jsonl")
    use(monkeypatch, server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    told = said(f"s3://{BUCKET}/x.jsonl")
    assert f"s3://{BUCKET}/x.jsonl: access is refused" in told
    assert "AWS_ACCESS_KEY_ID" in told


def test_what_can_only_be_read_takes_no_output(
    capsys: pytest.CaptureFixture[str], workspace_folder: Path
) -> None:
    asked = ("link", "in.jsonl", "--workspace", str(workspace_folder), "--output")
    for address in ("https://example.org/out", "hf://datasets/someone/out"):
        assert f"{address} is not written to" in refused(capsys, *asked, address)


def test_no_key_at_all_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server, linking: list[str]
) -> None:
    use(monkeypatch, {"AWS_ENDPOINT_URL": server.environment["AWS_ENDPOINT_URL"],
                      "AWS_EC2_METADATA_DISABLED": "true"})  # fmt: skip
    said = refused(capsys, "link", f"s3://{BUCKET}/in.jsonl", *linking)
    assert "access is refused (Unable to locate credentials): look at AWS_ACCESS_KEY_ID" in said


def test_a_store_that_does_not_answer_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server, linking: list[str]
) -> None:
    monkeypatch.setattr(stores, "_PATIENCE", 0.5)
    with silent() as address:
        use(monkeypatch, server.environment | {"AWS_ENDPOINT_URL": address})
        said = refused(capsys, "link", f"s3://{BUCKET}/in.jsonl", *linking)
    assert f"s3://{BUCKET}/in.jsonl: its store has not answered within 0.5 seconds" in said


@pytest.mark.parametrize(("address", "package"), [
    ("s3://captions/in.jsonl", "s3fs"), ("gs://captions/in.jsonl", "gcsfs"),
    ("az://captions/in.jsonl", "adlfs"),
])  # fmt: skip
def test_a_missing_driver_is_one_sentence_with_the_command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    linking: list[str],
    address: str,
    package: str,
) -> None:
    from fsspec.registry import _registry

    scheme = address.partition(":")[0]
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    monkeypatch.delitem(_registry, scheme, raising=False)
    said = refused(capsys, "link", address, *linking)
    assert f"{address} needs the package {package}: pip install 'gemel-ray[stores]'" in said


def test_an_unknown_kind_of_store_names_those_there_are(
    capsys: pytest.CaptureFixture[str], linking: list[str]
) -> None:
    assert "there is s3, gs, az" in refused(capsys, "link", "cloud://x/in.jsonl", *linking)


# Workspaces


def uploaded(server: Server, folder: Path, name: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            server.put(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"s3://{BUCKET}/{name}"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where brought workspaces are kept."""
    monkeypatch.setattr(remote, "home", lambda: tmp_path / "home")  # the models stay where they are
    return tmp_path / "home" / "workspaces"


def contents(folder: Path) -> dict[str, bytes]:
    left = ("cache", "training", ".")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith(left)}


def test_a_workspace_is_brought_once_and_opens(
    server: Server, workspace_folder: Path, config: Config, kept: Path
) -> None:
    address, said = uploaded(server, workspace_folder, "kb"), list[str]()
    server.put("kb/cache/pictures.sqlite", b"of another machine")
    with ThreadPoolExecutor(4) as threads:  # of a node's workers one brings it, the others wait
        folders = set(threads.map(lambda _: local_copy(address, said.append), range(4)))
    (folder,) = folders
    assert len(said) == 1
    assert contents(folder) == contents(workspace_folder)
    assert not (folder / "cache").exists()
    assert str(Shared.of(folder)) == address
    assert Workspace.open(folder, config).version == Workspace.open(workspace_folder, config).version
    assert [path.name for path in kept.iterdir() if not path.name.startswith(".")] == [folder.name]


def test_a_workspace_that_changed_is_another_folder_and_no_running_job_takes_it(
    server: Server, kept: Path
) -> None:
    address = f"s3://{BUCKET}/changing"
    server.put("changing/workspace.json", b"{}")
    first = local_copy(address, print)
    shared = Shared.of(first)
    server.put("changing/workspace.json", b'{"format": 1}')
    assert local_copy(address, print) != first
    assert shared.here() == first
    shutil.rmtree(first)  # as on a node that starts later
    with pytest.raises(StoreError, match="changed since this was started"):
        shared.here()


def test_what_comes_damaged_is_fetched_again_and_never_stays(
    server: Server, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    server.put("damaged/workspace.json", b"{}")
    real, left = S3FileSystem.get_file, [1]

    def damaging(self: S3FileSystem, path: str, to: str) -> None:
        real(self, path, to)
        if left[0]:
            left[0] -= 1
            Path(to).write_bytes(f"{left[0]:02}".encode())

    monkeypatch.setattr(S3FileSystem, "get_file", damaging)
    folder = local_copy(f"s3://{BUCKET}/damaged", print)
    assert (folder / "workspace.json").read_bytes() == b"{}"
    shutil.rmtree(folder)
    left[0] = 100
    with pytest.raises(StoreError, match="comes otherwise than its store lists it"):
        local_copy(f"s3://{BUCKET}/damaged", print)
    assert not folder.exists()


def test_an_address_that_is_no_workspace_is_one_sentence(
    capsys: pytest.CaptureFixture[str], kept: Path, tmp_path: Path
) -> None:
    asked = ("link", "x.jsonl", "--output", str(tmp_path / "out"), "--workspace")
    assert f"s3://{BUCKET}/none is not a workspace" in refused(capsys, *asked, f"s3://{BUCKET}/none")
    assert "there is no bucket nobodys" in refused(capsys, *asked, "s3://nobodys/kb")


@pytest.mark.parametrize(
    "words", [("kb", "list", "--workspace", "s3://b/kb"), ("study", "--gold", "x", "--workspace", "w",
              "--output", "s3://b/o"), ("build", "--entities", "e", "--output", "gs://b/kb")],
)  # fmt: skip
def test_what_is_written_to_in_place_is_a_folder_of_this_machine(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "takes a folder of this machine, not" in capsys.readouterr().err


def test_a_workspace_is_fetched_from_a_web_server(workspace_folder: Path, config: Config, kept: Path) -> None:
    """Any server that lists its folders: nginx, Apache, this one of Python's."""
    serve = partial(SimpleHTTPRequestHandler, directory=str(workspace_folder))
    with answering(serve) as at:
        folder = local_copy(f"{at}/", print)
    assert contents(folder) == contents(workspace_folder)


# Folders that are written to


@pytest.fixture(params=["a disk", "a store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return folder_at(tmp_path / "out" if request.param == "a disk" else f"s3://{BUCKET}/{tmp_path.name}/out")


def test_a_folder_holds_what_was_written_last(folder: Folder) -> None:
    assert (folder.names(), folder.names("links")) == ([], [])
    folder.write("manifest.json", b"old")
    folder.write("manifest.json", b"new")
    folder.write("links/b", b"0123456789")
    folder.write("links/a", b"")
    folder.write("links/.hidden", b"")
    assert folder.read("manifest.json") == b"new"
    assert folder.names() == ["manifest.json"]
    assert folder.names("links") == ["links/a", "links/b"]
    with folder.open("links/b") as file:
        file.seek(-3, 2)
        assert file.read() == b"789"


def test_what_is_not_there_is_a_missing_file_and_can_be_removed(folder: Folder) -> None:
    folder.write("here", b"")
    for ask in (folder.read, lambda name: folder.open(name).read()):
        with pytest.raises(FileNotFoundError):
            ask("links/gone")
    folder.remove("links/gone")
    folder.remove("here")
    assert folder.names() == []


def test_a_torn_file_is_set_aside(folder: Folder) -> None:
    for number in range(2):
        folder.write("links/a", b"half")
        assert folder.set_aside("links/a") == f"links/a.{number}.torn"
    assert folder.names("links") == ["links/a.0.torn", "links/a.1.torn"]


def test_folders_inside_are_listed_and_cleared(folder: Folder) -> None:
    assert folder.folders("parts") == []
    for name in ("parts/one/a", "parts/one/b", "parts/two/a", "parts/c"):
        folder.write(name, b"")
    folder.tidy("parts")
    assert folder.folders("parts") == ["parts/one", "parts/two"]
    folder.clear("parts/one")
    folder.clear("parts/none")
    assert folder.folders("parts") == ["parts/two"]
    assert folder.names("parts") == ["parts/c"]


def test_of_many_creators_one_is_told_so(folder: Folder) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: folder.create("claim", str(i).encode()), range(24)))
    assert sum(made) == 1
    assert folder.read("claim") == str(made.index(True)).encode()


def test_a_folder_of_a_store_says_what_is_wrong_with_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(StoreError, match=r"s3://captions/out/a: access is refused"):
        folder_at(f"s3://{BUCKET}/out").write("a", b"")
    use(monkeypatch, server.environment)
    with pytest.raises(OSError, match="bucket"):
        folder_at("s3://nobodys/out").write("a", b"")


# A job's output


def test_a_store_in_which_two_can_create_one_object_takes_no_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from s3fs import S3FileSystem

    keeps_writers_apart(f"s3://{BUCKET}/kept")
    keeps_writers_apart(tmp_path)
    assert folder_at(f"s3://{BUCKET}/kept").names() == []
    real = S3FileSystem._pipe_file

    async def heedless(self: S3FileSystem, path: str, data: bytes, **_: object) -> object:
        return await real(self, path, data)

    monkeypatch.setattr(S3FileSystem, "_pipe_file", heedless)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match="pays no heed to If-None-Match"):
        keeps_writers_apart(f"s3://{BUCKET}/kept")


def test_what_a_job_leaves_in_a_store_is_shown_and_judged(
    server: Server,
    capsys: pytest.CaptureFixture[str],
    config: Config,
    workspace_folder: Path,
) -> None:
    """The job itself is in test_job_stores.py."""
    mention = {"start": 0, "end": 5, "target": "Adobe"}
    gold = json.dumps({"id": "d", "text": "Adobe opened a shop.", "mentions": [mention]})
    source, output = server.put("left/in.jsonl", gold.encode()), f"s3://{BUCKET}/left/out"
    run = results.prepare(output)
    base = dict.fromkeys(LINK.names) | {"document_id": "d", "mention": "Adobe", "status": "linked"}
    row = base | {"mention_id": "0-5", "start": 0, "end": 5, "entity": "Adobe", "entity_id": "adobe"}
    rows = pa.Table.from_pylist([row], LINK).append_column("source", [[f"{source}:1"]])
    write_part(rows, folder_at(output), run)
    told = Record(output, 1, 0)
    told.add(batch_counts(rows, run))
    manifest = write_manifest(config, workspace_folder, [source], told, "0")
    write_page(output)
    assert json.loads(server.get("left/out/manifest.json")) == json.loads(json.dumps(manifest))
    assert manifest["statuses"] == {"linked": 1}
    assert json.loads(server.get("left/out/progress.json"))["state"] == "finished"
    page = server.get("left/out/report.html").decode()
    assert "<title>gemel-ray link: out</title>" in page
    assert "Adobe" in page
    assert main(["evaluate", output, "--gold", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


# The hub


class Hub(BaseHTTPRequestHandler):
    """Imitates the few answers of huggingface.co that listing and reading a data set's file take."""

    body = line("a") + line("b")
    tree: ClassVar[dict[str, Any]] = {
        "main": [{"type": "directory", "oid": "1" * 40, "size": 0, "path": "in"}],
        "in": [{"type": "file", "oid": "0" * 40, "size": len(body), "path": "in/x.jsonl"}],
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/someone/captions"):
            listed = self.tree.get(path.rpartition("/")[2], {"id": "someone/captions", "sha": "2" * 40})
            self._answer(200, json.dumps(listed).encode())
        elif path == "/datasets/someone/captions/resolve/main/in/x.jsonl":
            self._answer(206, self.body)
        else:
            self._answer(404, b"")

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def test_a_data_set_of_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(Hub) as at:
        endpoint = {"endpoint": at}
        monkeypatch.setitem(fsspec.config.conf, "hf", endpoint)
        for asked in ("in", "in/*.jsonl", "in/x.jsonl"):
            found = files([f"hf://datasets/someone/captions/{asked}"])
            assert found == ["hf://datasets/someone/captions/in/x.jsonl"]
        assert ids(found) == ["a", "b"]
        with pytest.raises(ValueError, match="there is no hf://datasets/someone/captions/in/gone"):
            files(["hf://datasets/someone/captions/in/gone.jsonl"])


def test_a_driver_s_own_log_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """What it warns of, with a traceback, is our sentence."""
    for name in ("gcsfs", "gcsfs.retry", "adlfs", "s3fs"):
        logging.getLogger(name).error("out of retries")
    assert caplog.text == ""
