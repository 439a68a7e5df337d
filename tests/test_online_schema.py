"""The endpoint against its own description: schemathesis asks what /openapi.json allows, and what it forbids.

All of it without models, whose answers are slow; some of it of the real endpoint. After test_online.py, whose
server that is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from live import listening
from on_serve import Served
from serving_cases import echoed, endpoint

from gemel_ray.config import Online
from gemel_ray.serving.app import create

# A mention that stands nowhere in its text is refused, and no schema can say so: what is allowed need not be
# accepted. All other checks hold.
SETTINGS = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
COMMAND = "--config-file settings.toml run {}/openapi.json --seed 1 --request-timeout 60 \
--suppress-health-check all --no-color"


def does_what_it_says(address: str, folder: Path, *options: str) -> None:
    (folder / "settings.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "schemathesis.cli", *COMMAND.format(address).split(), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 7" in done.stdout


@pytest.mark.slow
def test_the_api_does_what_its_description_says(tmp_path: Path) -> None:
    with listening(create(endpoint(tmp_path, echoed, Online()))) as address:
        does_what_it_says(address, tmp_path, "--phases=examples,coverage,fuzzing", "--max-examples=100")


@pytest.mark.slow
@pytest.mark.ray
def test_the_endpoint_on_ray_serve_does_what_its_schema_says(served: Served, tmp_path: Path) -> None:
    does_what_it_says(served.address, tmp_path, "--phases=examples,fuzzing", "--max-examples=5")
