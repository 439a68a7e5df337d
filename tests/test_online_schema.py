"""The endpoint against its own description: schemathesis asks what /openapi.json allows, and what it forbids.

After test_online.py, whose server it shares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from on_serve import Served

pytestmark = [pytest.mark.slow, pytest.mark.ray]
# A mention that stands nowhere in its text is refused, and no schema can say so: what is allowed need not be
# accepted. All other checks hold.
SETTINGS = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
COMMAND = "--config-file settings.toml run {}/openapi.json --phases examples,coverage,fuzzing \
--max-examples 15 --seed 1 --request-timeout 60 --max-time 100 --suppress-health-check all --no-color"


def test_it_does_what_its_description_says(served: Served, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "schemathesis.cli", *COMMAND.format(served.address).split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 7" in done.stdout
