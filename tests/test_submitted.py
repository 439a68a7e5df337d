"""A job that Ray's job server runs is stopped, not failed, when its user can mend what is wrong."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import answering

JOB = {"metadata": {"job_submission_id": "gemel-ray-link-abc"}}


class JobServer(http.server.BaseHTTPRequestHandler):
    """Ray's job server, as far as a driver asks: stopping a job ends its driver."""

    asked: list[str]
    driver: int

    def _answer(self, body: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        self._answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self._answer({"stopped": True})
        os.kill(self.driver, signal.SIGTERM)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[JobServer]]]:
    class Server(JobServer):
        pass

    Server.asked = []
    with answering(Server) as address:
        yield address, Server


def ran(server: tuple[str, type[JobServer]], arguments: list[str], **environment: str) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("gemel-ray")), "link", *arguments]
    told = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(JOB), "RAY_API_SERVER_ADDRESS": server[0]}
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | told | environment)
    server[1].driver = driver.pid
    _, said = driver.communicate(timeout=600)
    return driver.returncode, said


@pytest.mark.parametrize("wrong", ["path", "usage"])
def test_a_mistake_is_told_and_the_job_stopped(
    server: tuple[str, type[JobServer]], tmp_path: Path, wrong: str
) -> None:
    arguments = ["a.jsonl", "--workspace", str(tmp_path / "no-such"), "--output", str(tmp_path / "out")]
    if wrong == "usage":
        arguments[3:4] = []
    status, said = ran(server, arguments, GEMEL_RAY_STOP_MISTAKES="1")
    assert status == -signal.SIGTERM
    assert server[1].asked == ["/api/jobs/gemel-ray-link-abc/stop"]
    assert said.startswith("gemel-ray link: ")
    assert "Traceback" not in said


def test_elsewhere_it_is_a_job_that_failed(server: tuple[str, type[JobServer]], tmp_path: Path) -> None:
    arguments = ["a.jsonl", "--workspace", str(tmp_path / "no-such"), "--output", str(tmp_path / "out")]
    assert ran(server, arguments)[0] == 2
    assert server[1].asked == []
