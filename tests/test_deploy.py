"""The manifests against what they must agree with: KubeRay's schema, the settings, the command, the pins."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gemel_ray import cli
from gemel_ray.arguments import parser
from gemel_ray.config import Config, load

HOUSE = Path(__file__).parent.parent
SCHEMA = HOUSE.parent / "shared" / "kuberay" / "crds" / "ray.io_rayjobs.yaml"
FOLDERS = {"base": "cpu", "overlays/gpu": "gpu"}  # and the build of vLLM in their image
READING = 1.5  # CPUs: a task that reads, and one that cuts what was read into blocks
Json = dict[str, Any]

rendered_all = pytest.mark.parametrize("folder", FOLDERS)


@cache
def rendered(folder: str) -> dict[str, Json]:
    """What `kubectl kustomize` makes of a folder of deploy/, by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the manifests are not rendered")
    command = ["kubectl", "kustomize", str(HOUSE / "deploy" / folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    documents = list(yaml.safe_load_all(made.stdout))
    assert sorted(d["kind"] for d in documents) == ["ConfigMap", "RayJob"]
    return {d["kind"]: d for d in documents}


def spec(folder: str) -> Json:
    return rendered(folder)["RayJob"]["spec"]


def pods(folder: str) -> dict[str, Json]:
    """The pod templates' specs, by what they are for."""
    cluster = spec(folder)["rayClusterSpec"]
    groups = {g["groupName"]: g["template"]["spec"] for g in cluster["workerGroupSpecs"]}
    head, submitter = cluster["headGroupSpec"]["template"], spec(folder)["submitterPodTemplate"]
    return {"submitter": submitter["spec"], "head": head["spec"], **groups}


def options(folder: str) -> Any:
    program, *arguments = shlex.split(spec(folder)["entrypoint"])
    assert program == "gemel-ray"
    return parser(cli._VERBS).parse_args(arguments)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[[str], Config]:
    """The configuration a job loads: of the file its command names, by way of the head's mounts."""

    def settings(folder: str) -> Config:
        head, asked = pods(folder)["head"], options(folder)
        (mount,) = [
            m for m in head["containers"][0]["volumeMounts"] if m["mountPath"] == str(asked.config.parent)
        ]
        (volume,) = [v for v in head["volumes"] if v["name"] == mount["name"]]
        made = rendered(folder)["ConfigMap"]
        assert volume["configMap"]["name"] == made["metadata"]["name"]
        file = tmp_path / asked.config.name
        file.write_text(made["data"][asked.config.name])
        return load(file, {}, asked.set)

    return settings


# KubeRay's schema, as strictly as `kubectl apply --validate=strict` takes it.


def known(validator: Any, properties: Json, value: Any, schema: Json) -> Iterator[Any]:
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        for name in value.keys() - properties.keys():
            yield jsonschema.ValidationError(f"unknown field {name}")
    yield from jsonschema.Draft4Validator.VALIDATORS["properties"](validator, properties, value, schema)


def required(validator: Any, names: list[str], value: Any, schema: Json) -> Iterator[Any]:
    absent = [
        n for n in names if "default" not in schema.get("properties", {}).get(n, {})
    ]  # filled in before
    yield from jsonschema.Draft4Validator.VALIDATORS["required"](validator, absent, value, schema)


def distinct(validator: Any, keys: list[str], value: Any, schema: Json) -> Iterator[Any]:
    found = [tuple(item.get(key) for key in keys) for item in value]
    if len(found) != len(set(found)):
        yield jsonschema.ValidationError(f"two items have the same {', '.join(keys)}")


Strict = jsonschema.validators.extend(
    jsonschema.Draft4Validator,
    {"properties": known, "required": required, "x-kubernetes-list-map-keys": distinct},
)


@pytest.fixture(scope="module")
def schema() -> Any:
    if not SCHEMA.is_file():
        pytest.skip(f"KubeRay's schema is not there: {SCHEMA}")
    versions = yaml.load(SCHEMA.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"][
        "versions"
    ]
    return Strict(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])


@rendered_all
def test_schema(folder: str, schema: Any) -> None:
    job = rendered(folder)["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert [f"{e.json_path}: {e.message}" for e in schema.iter_errors(job)] == []


DAMAGE: dict[str, Callable[[Json], object]] = {
    "unknown": lambda s: s.update(retries=3),
    "misspelt": lambda s: s["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=2),
    "deep": lambda s: s["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(
        img="x"
    ),
    "type": lambda s: s["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    "quantity": lambda s: s["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]["limits"].update(memory="much"),
    "absent": lambda s: s["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
    "twice": lambda s: s["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "env"
    ].append({"name": "HF_HOME", "value": "/elsewhere"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_schema_refuses(damage: str, schema: Any) -> None:
    job = copy.deepcopy(rendered("base")["RayJob"])
    DAMAGE[damage](job["spec"])
    assert not schema.is_valid(job)


# What KubeRay and Kubernetes ask beyond the schema.


@rendered_all
def test_job(folder: str) -> None:
    job = spec(folder)
    assert len(rendered(folder)["RayJob"]["metadata"]["name"]) <= 47
    assert job["backoffLimit"] > 0  # a retry is a new cluster that resumes
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job["entrypoint"] == shlex.join(shlex.split(job["entrypoint"]))  # it is pasted into a shell
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]  # no autoscaler


@rendered_all
def test_pods(folder: str) -> None:
    dockerfile = (HOUSE / "cluster" / "Dockerfile").read_text()
    user = int(re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)[-1])
    for pod in pods(folder).values():
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        assert "memory" in most
        assert {k: v for k, v in asked.items() if k != "cpu"} == most
        mounted = [m["name"] for m in container.get("volumeMounts", [])]
        assert sorted(mounted) == sorted(v["name"] for v in pod.get("volumes", []))


@rendered_all
def test_pods_share_what_the_command_names(folder: str) -> None:
    asked = options(folder)
    claim = yaml.safe_load((HOUSE / "deploy" / "claim.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in pods(folder).items():
        if name == "submitter":
            continue
        (volume,) = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume]
        for path in [asked.workspace, asked.output, *map(Path, asked.inputs)]:
            assert path.is_relative_to(mount["mountPath"])
        (claimed,) = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == volume]
        assert claimed == {"claimName": claim["metadata"]["name"]}


# The pins.


@rendered_all
def test_image_has_the_pinned_ray(folder: str) -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    (ray,) = [d.partition("==")[2] for d in project["dependencies"] if re.match(r"ray\b", d)]
    assert spec(folder)["rayClusterSpec"]["rayVersion"] == ray
    tag = f"{project['version']}-ray{ray}-{FOLDERS[folder]}"
    assert {pod["containers"][0]["image"] for pod in pods(folder).values()} == {f"gemel-ray:{tag}"}


def test_dockerfile() -> None:
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
    for extra in FOLDERS.values():
        for name in (word.replace("${EXTRA}", extra) for word in copied):
            assert (HOUSE / name).exists()
            assert any(fnmatch(name, pattern) for pattern in kept), f"{name} is left out of the build"
    makefile = (HOUSE / "Makefile").read_text()
    assert re.findall(r"^ARG UV_VERSION=(.*)$", text, re.MULTILINE) == re.findall(
        r"^UV_VERSION := (.*)$", makefile, re.M
    )
    (python,) = re.findall(r"^FROM python:([0-9.]+)-slim", text, re.MULTILINE)
    assert f"--python-version {python} " in makefile  # what the requirements are pinned for


# The configuration, and whether the cluster has room for it.


@rendered_all
def test_configuration(folder: str, settings: Callable[[str], Config]) -> None:
    offline = settings(folder).offline
    assert offline.address == "auto"
    for segment in offline.segments:
        assert 0 < segment.threads <= segment.cpus  # 0 would share out the cores of the head's node
    stages = [stage for segment in offline.segments for stage in segment.stages]
    assert stages == [s for segment in Config().offline.segments for s in segment.stages]


@rendered_all
def test_gpus_are_those_asked_for(folder: str, settings: Callable[[str], Config]) -> None:
    asked = sum(s.workers * s.gpus for s in settings(folder).offline.segments)
    assert sum(gpus for _, gpus in room(folder)) == pytest.approx(asked)
    assert (asked > 0) == (FOLDERS[folder] == "gpu")


@rendered_all
def test_workers_fit_however_they_are_placed(folder: str, settings: Callable[[str], Config]) -> None:
    segments = settings(folder).offline.segments
    needs = tuple((s.cpus, s.gpus) for s in segments)
    assert never_stuck(room(folder), needs, tuple(s.workers for s in segments))


def test_a_bad_placement_is_found() -> None:
    two_gpus = ((8.0, 1.0), (8.0, 1.0))
    engine, encoder = (2.0, 0.8), (1.0, 0.2)
    assert not never_stuck(two_gpus, (encoder, engine), (2, 2))  # both encoders on one GPU, no engine there
    assert not never_stuck(two_gpus, (engine,), (3,))
    assert not never_stuck(((4.0, 0.0),), ((4.0, 0.0),), (1,))  # nothing left to read with


Room = tuple[tuple[float, float], ...]


def room(folder: str) -> Room:
    """CPUs and GPUs of every worker pod."""
    found = []
    for group in spec(folder)["rayClusterSpec"]["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        cpus, gpus = resources["requests"]["cpu"], resources["limits"].get("nvidia.com/gpu", 0)
        assert cpus.isdigit()  # Ray rounds parts of a CPU up
        found += [(float(cpus), float(gpus))] * group["replicas"]
    return tuple(found)


@cache
def never_stuck(free: Room, needs: Room, waiting: tuple[int, ...]) -> bool:
    """Whether every worker finds room, and reading too, in whatever order and wherever Ray puts them."""
    if not any(waiting):
        return sum(cpus for cpus, _ in free) >= READING
    for kind, (cpus, gpus) in enumerate(needs):
        if not waiting[kind]:
            continue
        left = tuple(n - (i == kind) for i, n in enumerate(waiting))
        places = {pod for pod in free if pod[0] >= cpus and pod[1] >= gpus - 1e-6}
        if not places:
            return False
        for pod in places:
            others = list(free)
            others.remove(pod)
            rest = (pod[0] - cpus, round(pod[1] - gpus, 6))
            if not never_stuck(tuple(sorted([*others, rest])), needs, left):
                return False
    return True
