"""What is installed from the wheel: all that the package needs, and nothing that only a checkout can use."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from files import HOUSE

UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files. Building it asks the package index for hatchling, once."""
    if not UV.exists():
        pytest.skip("there is no uv beside this Python: make installs one")
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [str(UV), "build", "--wheel", "--quiet", "--out-dir", str(folder), str(HOUSE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "installed")
    return folder / "installed"


def test_every_file_of_the_package_is_in_it(unpacked: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "gemel_ray"], cwd=HOUSE, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no git checkout: what belongs to the package is not known")
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    left_out = tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"])
    assert all((HOUSE / name).exists() for name in left_out)
    names = [name for name in listed.stdout.decode().split("\0") if name and (HOUSE / name).exists()]
    wanted = {name for name in names if not name.startswith(left_out)}
    found = {str(f.relative_to(unpacked)) for f in (unpacked / "gemel_ray").rglob("*") if f.is_file()}
    assert sorted(wanted ^ found) == []
    differing = [n for n in sorted(wanted) if (HOUSE / n).read_bytes() != (unpacked / n).read_bytes()]
    assert differing == []


def test_the_wheel_works_without_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    """What is read at run time, by the code that reads it, in an empty folder."""
    program = """
import sys
import gemel_ray
assert gemel_ray.__file__.startswith(sys.argv[1]), gemel_ray.__file__
from gemel_ray.serving.demonstrations import PAGE
assert (PAGE / "index.html").exists() and (PAGE / "api.html").exists()
from gemel_ray.config import load
load(None, {}, [])
from gemel_ray.cli import main
assert main(["lint-deploy"]) == 2
main(["--help"])
"""
    told = subprocess.run(
        [sys.executable, "-c", program, str(unpacked)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "gemel-ray build" in told.stdout
    assert "gemel-ray lint-deploy: works in a checkout" in told.stderr + told.stdout
