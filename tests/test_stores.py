"""Object stores as people meet them: a real S3 server, right and wrong keys, buckets and addresses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import BUCKET, Server, serving, silent, use

from gemel_ray import stores
from gemel_ray.cli import main
from gemel_ray.readers import documents, files
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


def test_inputs_by_name_folder_pattern_and_range(server: Server) -> None:
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


def test_a_wrong_key_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server, linking: list[str]
) -> None:
    use(monkeypatch, server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    said = refused(capsys, "link", f"s3://{BUCKET}/in.jsonl", *linking)
    assert f"s3://{BUCKET}/in.jsonl: access is refused" in said
    assert "AWS_ACCESS_KEY_ID" in said


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
    assert said.endswith(f"s3://{BUCKET}/in.jsonl: its store has not answered within 0.5 seconds")


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
