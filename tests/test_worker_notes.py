"""What workers say is shown by the driver. With real workers and a server that is away: test_job_away.py."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path

import pytest

from gemel_ray.job import record
from gemel_ray.progress import Meter, Progress
from gemel_ray.storage import folder_at

SERVER = logging.getLogger("gemel_ray.knowledge.server")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_EVERY", 0.01)
    monkeypatch.setattr(record._SOURCE, "handlers", [])


def test_what_two_workers_say_is_reported_once(tmp_path: Path) -> None:
    output = folder_at(tmp_path)
    for run in ("this", "this", "another"):  # two workers, and one of a run that was before
        record.send_warnings(output, run)
    reported: list[str] = []
    with record.receive_warnings(output, "this", lambda progress: reported.append(progress.note)):
        for words in ("waiting", "again", "waiting"):
            SERVER.warning(words)
            until = time.monotonic() + 100
            while (not reported or reported[-1] != words) and time.monotonic() < until:
                time.sleep(0.01)
    assert reported == ["waiting", "again", "waiting"]


def test_a_note_is_shown_at_once_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Meter("documents", 3) as meter:
        meter.add(Progress(0, {}, "no Qdrant server answers"))
        meter.add(Progress(3, {"linked": 3}))
    lines = shown.getvalue().splitlines()
    assert lines[1] == "no Qdrant server answers"
    assert lines[-1].startswith("3/3 documents, 3 mentions")
