"""docs/serving.md does what it says: its commands and its program are run against the real endpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import HOUSE, blocks

from gemel_ray.records import LINK

PAGE = HOUSE / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"
pytestmark = pytest.mark.slow


def of(language: str) -> list[str]:
    return [b.text for b in blocks(PAGE) if b.language == language and not b.mark]


def run(command: list[str], folder: Path) -> str:
    """What it prints, in a folder that has the picture."""
    shutil.copy(HOUSE / "gemel_ray/serving/page/examples/flag.jpg", folder)
    here = os.environ | {"PYTHONPATH": str(HOUSE)}
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_commands_in_the_docs_of_serving_do_what_they_say(live_url: str, tmp_path: Path) -> None:
    commands = of("bash")
    assert len(commands) >= 4
    said = [run(["bash", "-ec", c.replace(ADDRESS, live_url)], tmp_path) for c in commands]
    found, pictured = json.loads(said[0]), json.loads(said[1])
    assert [link["mention"] for link in found["links"]] == ["Adobe", "Google"]
    assert set(found["links"][0]) == set(LINK.names)
    assert len(pictured["links"][0]["candidates"]) == 3
    lines = [json.loads(line) for line in said[2].splitlines()]
    assert {line["document_id"] for line in lines[:-1]} == {"a", "b"}
    assert "timings" in lines[-1]
    for answer in ('{"status":"ok"}', '"ready"', "gemel_ray_links_total", '"openapi":', '"picture":'):
        assert answer in said[3]


def test_the_program_in_the_docs_of_serving_does_what_it_says(live_url: str, tmp_path: Path) -> None:
    program, _ = of("python")  # the other one's way test_public.py goes
    printed = run([sys.executable, "-c", program.replace(ADDRESS, live_url)], tmp_path).splitlines()
    assert printed[0].startswith("AWS linked ")
    assert {line.partition(" ")[0] for line in printed[1:3]} == {"a", "b"}
    assert printed[3].startswith("bad_request ")


def test_the_errors_are_those_there_are() -> None:
    from gemel_ray.serving.schemas import STATUS

    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d{3}) \|", PAGE.read_text(), re.MULTILINE)
    told = {kind.strip("`"): int(status) for kinds, status in rows for kind in kinds.split(", ")}
    assert told == STATUS
