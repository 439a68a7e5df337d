"""deploy/ and what goes with it: clean under lint-deploy, copied and generated files as they should be."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import yaml
from files import HOUSE
from live import answering

from gemel_ray.config import Config
from gemel_ray.deploying import lint
from gemel_ray.deploying.manifests import Manifests, cluster, groups, rendered
from gemel_ray.deploying.placement import gpus, room
from gemel_ray.deploying.trimming import FILE, trimmed

CRDS = HOUSE.parent / "shared" / "kuberay"
OPERATIONS = HOUSE / "docs" / "operations.md"

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the manifests")


def script(path: str) -> ModuleType:
    """A file that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, HOUSE / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def clean() -> dict[str, Manifests]:
    return {manifests.folder: manifests for manifests in rendered(HOUSE / "deploy")}


@needs_kubectl
@pytest.mark.skipif(
    not hasattr(Config(), "online") or not find_spec("gemel_ray.online"), reason="there is no endpoint yet"
)
def test_the_lint_finds_nothing() -> None:
    assert list(map(str, lint(HOUSE / "deploy"))) == []


@needs_kubectl
def test_all_that_is_promised_is_there() -> None:
    sizes = {f"overlays/{size}/{kind}" for size in ("laptop", "cpu", "gpu") for kind in ("offline", "online")}
    ways = {f"overlays/gpu/online-{way}" for way in ("in-place", "incremental")}
    assert set(clean()) == sizes | ways | {".", "qdrant", "redis", "upload", "monitoring", "roles"}
    for folder, manifests in clean().items():
        found = [d["kind"] for d in manifests.documents if d["kind"].startswith("Ray")]
        kind = {"offline": ["RayJob"], "online": ["RayService"]}
        assert found == kind.get(folder.rpartition("/")[2].partition("-")[0], [])


@needs_kubectl
def test_the_job_takes_gpus_from_zero() -> None:
    (job,) = [d for d in clean()["overlays/gpu/offline"].documents if d["kind"] == "RayJob"]
    assert gpus(room(cluster(job), "minReplicas")) == 0
    assert gpus(room(cluster(job), "maxReplicas")) > 0


@needs_kubectl
def test_another_configuration_changes_the_pod_template_unless_it_applies_in_place() -> None:
    """Which is what makes KubeRay upgrade."""
    names = {}
    for folder in ("online", "online-in-place", "online-incremental"):
        (service,) = [d for d in clean()[f"overlays/gpu/{folder}"].documents if d["kind"] == "RayService"]
        templates = [cluster(service)["headGroupSpec"], *groups(cluster(service))]
        volumes = [v for t in templates for v in t["template"]["spec"]["volumes"] if v["name"] == "config"]
        (names[folder],) = {v["configMap"]["name"] for v in volumes}
    assert re.fullmatch(r"gemel-ray-service-\w{10}", names["online"])
    assert names["online-incremental"] == names["online"]
    assert names["online-in-place"] == "gemel-ray-service"


@needs_kubectl
def test_operations_tell_the_gpus_of_every_overlay() -> None:
    rows = re.findall(
        r"^\| `gpu/([\w-]+)` \| (\d) to (\d)[^|]*\| (?:up to )?(\d|-)", OPERATIONS.read_text(), re.M
    )
    told = {folder: (least, most, upgrade) for folder, least, most, upgrade in rows}
    expected = {}
    for folder, manifests in clean().items():
        if not folder.startswith("overlays/gpu/"):
            continue
        (document,) = [d for d in manifests.documents if d["kind"].startswith("Ray")]
        least, most = (gpus(room(cluster(document), bound)) for bound in ("minReplicas", "maxReplicas"))
        strategy = document["spec"].get("upgradeStrategy", {"type": "-"})
        surge = strategy.get("clusterUpgradeOptions", {}).get("maxSurgePercent", 100)
        more = {"NewCluster": 1.0, "NewClusterWithIncrementalUpgrade": surge / 100, "None": 0.0}
        share = more.get(strategy["type"])
        upgrade = "-" if share is None else f"{most * (1 + share):g}"
        expected[folder.rpartition("/")[2]] = (f"{least:g}", f"{most:g}", upgrade)
    assert told == expected


def test_operations_explain_every_alert() -> None:
    rules = yaml.safe_load((HOUSE / "deploy" / "monitoring" / "alerts.yaml").read_text())
    alerts = [rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert alerts
    assert sorted(re.findall(r"^\| (Gemel\w+) \|", OPERATIONS.read_text(), re.M)) == sorted(alerts)


def test_operations_name_files_that_are_there() -> None:
    text = OPERATIONS.read_text()
    for path in re.findall(r"kubectl (?:apply|delete) (?:--server-side )?-[kf] (\S+)", text):
        assert (HOUSE / path).exists(), path
    for link in re.findall(r"\]\((\.\.?/[^)#]*)\)", text):
        assert (OPERATIONS.parent / link).exists(), link


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"KubeRay's definitions are not at {CRDS}")
def test_the_vendored_schemas_are_kuberays() -> None:
    assert FILE.read_text() == trimmed([CRDS / "crds", CRDS / "crds-prometheus"])


def test_dashboards_are_those_of_the_pinned_ray() -> None:
    made = script("cluster/dashboards.py").made()
    folder = HOUSE / "deploy" / "monitoring" / "dashboards"
    assert {file.name: file.read_text().rstrip("\n") for file in folder.iterdir()} == made
    for text in made.values():
        assert len(text) < 2**20  # a ConfigMap holds no more


class Qdrant(http.server.BaseHTTPRequestHandler):
    """Collections and snapshots, as far as the nightly script asks."""

    held: ClassVar[dict[str, list[str]]]
    keys: ClassVar[set[str]]

    def answer(self, result: Any) -> None:
        self.keys.add(self.headers.get("api-key", ""))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"result": result}).encode())

    def do_GET(self) -> None:
        if self.path == "/collections":
            return self.answer({"collections": [{"name": name} for name in self.held]})
        names = self.held[self.path.split("/")[2]]
        return self.answer([{"name": n, "creation_time": n} for n in reversed(names)])

    def do_POST(self) -> None:
        names = self.held[self.path.split("/")[2]]
        names.append(f"2026-02-{len(names) + 1:02}")
        self.answer({"name": names[-1]})

    def do_DELETE(self) -> None:
        _, _, collection, _, name = self.path.split("/")
        self.held[collection].remove(name)
        self.answer(True)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def qdrant() -> Iterator[tuple[str, type[Qdrant]]]:
    class Server(Qdrant):
        pass

    Server.held, Server.keys = {"a": [f"2026-01-0{n}" for n in range(1, 4)], "b": []}, set()
    with answering(Server) as address:
        yield address, Server


def test_snapshots_are_made_and_the_oldest_go(qdrant: tuple[str, type[Qdrant]]) -> None:
    address, server = qdrant
    command = [sys.executable, str(HOUSE / "deploy" / "qdrant" / "snapshot.py"), address, "--keep", "2"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"QDRANT_API_KEY": "secret"}
    )
    assert told.stdout.split() == ["2026-02-04", "2026-02-01"]
    assert server.held == {"a": ["2026-01-03", "2026-02-04"], "b": ["2026-02-01"]}
    assert server.keys == {"secret"}


def test_the_image_has_all_files_that_its_dockerfile_copies() -> None:
    text = (HOUSE / "cluster" / "Dockerfile").read_text()
    kept = [
        line.removeprefix("!")
        for line in (HOUSE / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        word for words in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in words.split()
    ]
    assert "requirements-${EXTRA}.txt" in copied
    for extra in ("cpu", "gpu"):
        for name in (word.replace("${EXTRA}", extra) for word in copied):
            assert (HOUSE / name).exists()
            assert any(fnmatch(name, pattern) for pattern in kept), f"{name} is left out of the build"
    makefile = (HOUSE / "Makefile").read_text()
    assert re.findall(r"^ARG UV_VERSION=(.*)$", text, re.MULTILINE) == re.findall(
        r"^UV_VERSION := (.*)$", makefile, re.M
    )
    (python,) = re.findall(r"^FROM python:([0-9.]+)-slim", text, re.MULTILINE)
    assert f"--python-version {python} " in makefile  # what the requirements are pinned for


@needs_kubectl
def test_pods_run_as_the_images_user() -> None:
    text = (HOUSE / "cluster" / "Dockerfile").read_text()
    user = int(re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)[-1])
    pods = [pod for manifests in clean().values() for pod in manifests.pods()]
    ours = [pod for pod in pods if "gemel-ray:" in pod.main["image"]]
    assert ours
    assert {pod.spec["securityContext"]["runAsUser"] for pod in ours} == {user}


def test_the_image_is_clean_to_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run(
        [hadolint, HOUSE / "cluster" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize("name", ["on_premises.yaml", "aws.yaml"])
def test_the_launchers_are_what_ray_takes(name: str) -> None:
    """Ray's own schema, which refuses unknown fields; and what a job on them asks for is there."""
    import jsonschema
    import ray

    launcher = yaml.safe_load((HOUSE / "cluster" / name).read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    image = launcher["docker"]["image"].rpartition("/")[2]
    assert image in (HOUSE / "cluster" / "README.md").read_text().replace("-cpu", "-gpu")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher | {"max_worker": 2}, schema)


def test_the_rented_gpus_hold_the_job_s_segments() -> None:
    launcher = yaml.safe_load((HOUSE / "cluster" / "aws.yaml").read_text())
    node = launcher["available_node_types"]["gpu"]["resources"]
    job = HOUSE / "deploy" / "overlays" / "gpu" / "offline" / "job_config.yaml"
    front, back = yaml.safe_load(job.read_text())["offline"]["segments"]
    assert front["cpus"] + back["cpus"] <= node["CPU"]
    assert front["gpus"] + back["gpus"] <= node["GPU"]
    assert 2 * front["cpus"] > node["CPU"]  # two encoders fit no machine, and two engines no GPU
    assert 2 * back["gpus"] > node["GPU"]


@needs_kubectl
def test_a_dead_head_of_the_service_counts_as_dead_within_what_operations_say() -> None:
    """Serve's controller is started anew only then, and requests hang until it is."""
    (service,) = [d for d in clean()["overlays/cpu/online"].documents if d["kind"] == "RayService"]
    head = cluster(service)["headGroupSpec"]["template"]["spec"]["containers"][0]
    said = {entry["name"]: entry.get("value", "") for entry in head["env"]}
    first, period, patience, times = (
        int(said[f"RAY_health_check_{name}"])
        for name in ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")
    )
    refused, silent = (first + times * each for each in (period, period + patience))
    assert (refused, silent) == (6000, 21000)
    assert "counts as dead after 6 s, or 21." in " ".join(OPERATIONS.read_text().split())


@needs_kubectl
def test_every_node_of_a_job_ends_when_it_is_told_to() -> None:
    """KubeRay's shell is process 1, which passes no SIGTERM on: without preStop, 30 or 60 s each."""
    for folder in ("overlays/gpu/offline", "overlays/gpu/online"):
        (document,) = [d for d in clean()[folder].documents if d["kind"].startswith("Ray")]
        for group in (cluster(document)["headGroupSpec"], *groups(cluster(document))):
            stop = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert "ray stop" in " ".join(stop)
