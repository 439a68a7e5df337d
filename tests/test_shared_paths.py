"""What must be the same on every node: what is looked at, and what is said where it is not. With real nodes
and disks of their own: test_cluster.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from gemel_ray.config import Config
from gemel_ray.job import results, shared
from gemel_ray.job.shared import SharedPath
from gemel_ray.knowledge.remote import SHARE, Shared
from gemel_ray.settings import Models
from gemel_ray.storage import folder_at
from gemel_ray.stores import StoreError


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_AGAIN", (0.0, 0.01))


def workspace(folder: Path) -> Shared:
    folder.mkdir()
    (folder / "workspace.json").write_text('{"version": "a"}')
    return Shared.of(folder)


def test_what_is_as_it_was_is_no_fault_and_the_rest_is_said_by_node_and_path(tmp_path: Path) -> None:
    at = tmp_path / "workspace"
    run = results.prepare(tmp_path / "out")
    seen = shared.of_worker(workspace(at), "0", folder_at(tmp_path / "out"))
    assert run in (tmp_path / "out" / "run").read_text()
    assert shared.refusal({"a": shared.faults(seen), "b": []}) == ""
    shared.check_here(seen)
    (at / "workspace.json").write_text('{"version": "b"}')
    shutil.rmtree(tmp_path / "out")
    other, gone = shared.faults(seen)
    assert other == f"has another {at}/workspace.json (the workspace): {SHARE}"
    assert gone.startswith(f"does not see {tmp_path}/out/run (the output): put it where all nodes see it")
    assert shared.refusal({"a": [], "b": [gone], "c": [other, gone]}) == f"node b (and 1 more) {gone}"
    with pytest.raises(OSError, match=r"node .* has another .*workspace\.json"):
        shared.check_here(seen)


def test_pictures_and_models_that_are_files_here_are_looked_at(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    file, model = tmp_path / "in.jsonl", tmp_path / "model"
    model.mkdir()
    rows = [{"id": f"d{i}", "text": "x", "image": image} for i, image in enumerate(["no.png", "one.png"])]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = replace(Config(), models=Models(language=str(model)))
    seen = {(s.what, s.path) for s in shared.of_job(config, [str(file), "s3://bucket/more.jsonl"])}
    assert seen == {
        ("the input", str(file)),
        ("a picture of the input", str(tmp_path / "one.png")),
        ("models.language", str(model)),
    }


def test_an_input_that_cannot_be_read_is_left_to_its_rows(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"no Parquet")
    inputs = [str(tmp_path / "in.parquet"), str(tmp_path / "gone.jsonl")]
    assert [s.path for s in shared.of_job(Config(), inputs)] == inputs[:1]


def test_a_file_that_comes_a_little_later_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run"
    file.write_text("r")
    seen = SharedPath.here("the output", file)
    file.unlink()
    monkeypatch.setattr("time.sleep", lambda seconds: seconds and file.write_text("r"))
    assert seen.fault() == ""


def test_a_workspace_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    ours = workspace(tmp_path / "workspace")
    assert ours.here() == ours.folder
    shutil.rmtree(ours.folder)
    with pytest.raises(
        StoreError, match=r"node \S+ does not see .*workspace \(the workspace\): put it where"
    ):
        ours.here()
