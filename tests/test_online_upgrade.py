"""Another configuration over the running endpoint, as a RayService gives it; then the end.

After test_online.py, whose server it shares; nothing is served when it is done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import until
from on_serve import DOCUMENTS, Served

from gemel_ray.config import Config
from gemel_ray.online import NAME, deployed

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TEXT = "Adobe and Google met in Paris."
LONG = {
    "text": TEXT,
    "mentions": [{"start": n, "end": n + 2} for n in range(0, 24, 3)],
}  # all are inside at once


def deploy(config: Config, workspace: Path) -> None:
    """Until all of it is there."""
    from ray import serve

    serve.run(deployed(config, workspace), name=NAME, route_prefix="/")


def rows_say(answer: Any) -> set[str]:
    return {row["fingerprint"] for row in answer["links"]}


def test_another_configuration_loses_no_accepted_request(served: Served, workspace_folder: Path) -> None:
    before = served.ask(json={"text": TEXT, "mentions": ["Adobe"]}).json()
    changed = replace(served.config, generate=replace(served.config.generate, beams=3))
    over = threading.Event()

    def visitor(number: int) -> list[Any]:
        answers = []
        while not over.is_set():
            over.wait(0.3)  # the new replicas need the processor, too
            answers.append(served.ask(json={"text": f"{TEXT} {number}", "mentions": ["Adobe", "Paris"]}))
        return answers

    with ThreadPoolExecutor(2) as pool:
        visitors = [pool.submit(visitor, number) for number in range(2)]
        try:
            deploy(changed, workspace_folder)
        finally:
            over.set()
        answers = [answer for v in visitors for answer in v.result()]
    refused = [a.json()["error"]["kind"] for a in answers if a.status_code != 200]
    assert set(refused) <= {"not_ready"}, refused  # not let in: none was accepted and lost
    for answer in (a.json() for a in answers if a.status_code == 200):
        assert rows_say(answer) == {answer["fingerprint"]}

    until(lambda: served.ask("/readyz").status_code == 200)
    after = served.ask(json={"text": TEXT, "mentions": ["Adobe"]}).json()
    assert rows_say(after) == {after["fingerprint"]} != {before["fingerprint"]} == rows_say(before)
    assert [link["entity"] for link in after["links"]] == [link["entity"] for link in before["links"]]


def test_at_the_end_what_was_accepted_is_finished(served: Served) -> None:
    """By both processes of the API; who comes meanwhile is told so, and never that nothing is there."""
    number, ended = DOCUMENTS - 2, threading.Event()

    def late() -> set[int]:
        said = set[int]()
        while not ended.is_set():
            with suppress(httpx.TransportError):
                said.add(served.ask(json={"text": TEXT}).status_code)
        return said

    with ThreadPoolExecutor(number + 1) as pool:
        accepted = [pool.submit(served.ask, json=LONG) for _ in range(number)]
        until(lambda: served.counted("gemel_ray_documents_inside") == number)
        latecomer = pool.submit(late)
        try:
            served.stop()
        finally:
            ended.set()
        assert latecomer.result() <= {200, 503}
        assert [a.result().status_code for a in accepted] == [200] * number
