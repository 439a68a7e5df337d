"""The RayService's serveConfigV2 on a real Ray head, by the call that KubeRay makes, with a token as there.

Of the manifest only the two paths, the port and the models' size are others: its own configuration is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from files import HOUSE
from live import free_port

from gemel_ray.config import Config
from gemel_ray.deploying.manifests import cluster, groups, rendered
from tests.conftest import SMALL

TOKEN = "0123456789abcdef" * 4
ENDPOINT = hasattr(Config(), "online") and find_spec("gemel_ray.online")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests"),
    pytest.mark.skipif(not ENDPOINT, reason="there is no endpoint yet"),
]


@dataclass(frozen=True)
class Service:
    """What the overlay for a laptop holds, made to run here."""

    config: dict[str, Any]  # serveConfigV2
    cpus: int  # of its workers
    port: int
    stages: list[str]  # names of its segments' deployments


@pytest.fixture(scope="module")
def service(workspace_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    (made,) = [m for m in rendered(HOUSE / "deploy") if m.folder == "overlays/laptop/online"]
    (document,) = [d for d in made.documents if d["kind"] == "RayService"]
    (carried,) = [d["data"] for d in made.documents if d["kind"] == "ConfigMap"]
    config = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    file = tmp_path_factory.mktemp("service") / Path(application["args"]["config"]).name
    file.write_text(carried[file.name])
    application["args"] |= {"workspace": str(workspace_folder), "config": str(file), "set": SMALL}
    config["http_options"]["port"] = free_port()
    resources = groups(cluster(document))[0]["template"]["spec"]["containers"][0]["resources"]
    segments = yaml.safe_load(carried[file.name])["online"]["segments"]
    return Service(
        config,
        int(resources["limits"]["cpu"]),
        config["http_options"]["port"],
        ["-".join(segment["stages"]) for segment in segments],
    )


@pytest.fixture(scope="module")
def dashboard(service: Service) -> Iterator[str]:
    """A head as KubeRay starts it, with the CPUs of the worker."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets have names of at most 107 characters
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"]
    command += [f"--num-cpus={service.cpus}", f"--port={free_port()}", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=true"]
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(HOUSE)}
    head = subprocess.Popen(
        command,
        env=os.environ | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:  # in order it takes 30 s
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def ask(method: str, url: str, content: Any = None, token: str = "") -> tuple[int, str]:
    """Status and text; 0 where nobody listens yet."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    except OSError:
        return 0, ""


def eventually(wanted: int, *words: Any, seconds: float = 400, **options: Any) -> str:
    end = time.monotonic() + seconds
    while True:
        status, text = ask(*words, **options)
        if status == wanted:
            return text
        assert time.monotonic() < end, (status, text)
        time.sleep(1)


@pytest.fixture(scope="module")
def running(service: Service, dashboard: str) -> dict[str, Any]:
    """The application's state when it runs, or has failed."""
    url = f"{dashboard}/api/serve/applications/"
    eventually(200, "PUT", url, service.config, token=TOKEN)  # KubeRay repeats it until it is taken, too
    end = time.monotonic() + 600
    while True:
        told = json.loads(eventually(200, "GET", url, token=TOKEN))
        (state,) = told["applications"].values()
        if state["status"] in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
            return dict(state)
        assert time.monotonic() < end, state
        time.sleep(2)


def test_the_deployed_application_runs_with_all_its_deployments(
    service: Service, running: dict[str, Any]
) -> None:
    assert running["status"] == "RUNNING", running["message"]
    assert set(running["deployments"]) == {"api", *service.stages}


def test_the_deployed_application_links_and_counts(service: Service, running: dict[str, Any]) -> None:
    asked = {"text": "Adobe and Google met in Paris.", "mentions": ["Adobe"]}
    told = json.loads(eventually(200, "POST", f"http://127.0.0.1:{service.port}/v1/link", asked))
    (link,) = told["links"]
    assert link["mention"] == "Adobe"
    assert link["status"] in ("linked", "nil")
    status, metrics = ask("GET", f"http://127.0.0.1:{service.port}/metrics")
    assert status == 200
    assert "gemel_ray_links_total" in metrics


def test_ray_asks_for_the_token(dashboard: str, running: dict[str, Any]) -> None:
    assert ask("GET", f"{dashboard}/api/serve/applications/")[0] == 401
    assert ask("GET", f"{dashboard}/api/gcs_healthz")[0] == 200  # which the kubelet asks
