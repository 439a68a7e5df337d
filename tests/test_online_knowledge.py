"""Knowledge changed while the endpoint serves: taken over within seconds, seen by the answers alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import until
from on_serve import Served

from gemel_ray.cli import main
from gemel_ray.knowledge import versions

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ASKED = {"text": "Zorblax Industries opened an office.", "mentions": ["Zorblax Industries"]}


def test_a_new_version_is_taken_over_while_it_serves_and_taken_back(
    served: Served, workspace_folder: Path
) -> None:
    before = versions.current(workspace_folder)
    answers: list[httpx.Response] = []
    end = threading.Event()

    def ask_on() -> None:
        while not end.is_set():
            answers.append(served.ask(json={"text": "Adobe opened an office.", "mentions": ["Adobe"]}))

    def linked() -> dict[str, Any]:
        answer: dict[str, Any] = served.ask(json=ASKED).json()
        return answer

    others = threading.Thread(target=ask_on)
    others.start()
    try:
        first = linked()
        assert first["knowledge"] == before
        assert first["links"][0]["entity"] != "Zorblax Industries"
        added = ["--id", "Z1", "--name", "Zorblax Industries", "--description", "a maker of zorblaxes"]
        assert main(["kb", "add", "--workspace", str(workspace_folder), *added]) == 0
        new = versions.current(workspace_folder)
        until(lambda: linked()["knowledge"] == new)
        after = linked()
        assert after["links"][0]["entity_id"] == "Z1"
        assert after["fingerprint"] == after["links"][0]["fingerprint"] != first["fingerprint"]
        assert served.ask("/readyz").json()["knowledge"] == new
    finally:
        assert main(["kb", "rollback", "--workspace", str(workspace_folder), before]) == 0
        until(lambda: linked()["knowledge"] == before)
        end.set()
        others.join()
    assert linked()["fingerprint"] == first["fingerprint"]
    assert {answer.status_code for answer in answers} == {200}
    assert len(answers) > 5
