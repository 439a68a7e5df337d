"""`import gemel_ray`: what outsiders build on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import SMALL
from files import DATA

import gemel_ray

SCRIPT = """
import json, sys
from pathlib import Path
import gemel_ray

if __name__ == "__main__":
    settings = dict(line.split("=", 1) for line in sys.argv[2:])
    picture = Path("flag.jpg")
    with gemel_ray.Linker(sys.argv[1], settings) as linker:
        found = linker.link("A flag with the mark of AWS.", picture, ["AWS"])
        found += linker.link("A flag with the mark of AWS.", picture.read_bytes(), [(24, 27)])
        rows = [{"id": "a", "text": "Adobe and AWS met.", "mentions": ["Adobe", "AWS"]}]
        found += linker.link_many([*rows, {"id": "b", "text": 7}])
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_documents_are_linked_in_this_process(workspace_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flag.jpg").write_bytes(pq.read_table(DATA / "test.parquet")["image"][0].as_py())
    (tmp_path / "linking.py").write_text(SCRIPT)
    command = [sys.executable, "linking.py", str(workspace_folder), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, *others = json.loads(done.stdout.splitlines()[-1])
    assert (first["mention"], first["start"], first["status"]) == ("AWS", 24, "linked")
    assert (first["entity"], first["probability"]) == (second["entity"], pytest.approx(second["probability"]))
    assert {link["document_id"] for link in others} == {"a", "b"}
    assert {link["mention"] for link in others if link["document_id"] == "a"} == {"Adobe", "AWS"}
    assert [link["status"] for link in others if link["document_id"] == "b"] == ["error"]


def test_what_is_public_is_there_and_nothing_is_loaded_for_it() -> None:
    assert all(getattr(gemel_ray, name) for name in gemel_ray.__all__)
    loaded = "import sys, gemel_ray; print(sorted({'torch', 'ray', 'pyarrow', 'vllm'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = gemel_ray.Engine


@pytest.mark.parametrize("name", [n for n in gemel_ray.__all__ if n.endswith("Error") or n == "EngineDied"])
def test_errors_have_one_root(name: str) -> None:
    assert issubclass(getattr(gemel_ray, name), gemel_ray.GemelError)


def test_a_workspace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(gemel_ray.WorkspaceError, match="nowhere"):
        gemel_ray.Linker(tmp_path / "nowhere")
