"""A workspace from a stranger: it brings its models and how it links, and sets nothing else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gemel_ray.checked import ConfigError
from gemel_ray.cli import main
from gemel_ray.config import CARRIED, Config, load
from gemel_ray.errors import WorkspaceError
from gemel_ray.gemel.importing import _settings
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.revision import revision


@pytest.mark.parametrize(
    "settings",
    [
        {"vectors": {"address": "http://evil.example:6333/mine"}},
        {"online": {"host": "0.0.0.0"}},
        {"online": {"address": "ray://evil.example:10001"}},
        {"online": {"hosts": ["*"]}},
        {"online": {"image_hosts": ["*"]}},
        {"online": {"queue": 10_000_000}},
        {"offline": {"address": "evil.example:6379"}},
        {"encode": {"public_hosts": False}},
        {"encode": {"max_megapixels": 1e6}},
        {"detect": {"stop": "/etc/passwd"}},
        {"detect": {"model": "evil/model"}},
        {"generate": {"requests": 10_000_000}},
        {"input": {"fetch_official_images": True}},
        {"online": 5},
        {"retrieve": None},
        [1],
    ],
)
def test_addresses_hosts_limits_and_files_are_refused(
    settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, over the user's own --config."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "workspace.json").write_text(json.dumps({"format": 1, "settings": settings}))
    (tmp_path / "own.yaml").write_text("online: {host: 127.0.0.1}")
    (tmp_path / "documents.jsonl").write_text('{"text": "Adobe"}\n')
    given = ["--workspace", str(folder), "--config", str(tmp_path / "own.yaml")]
    for verb in (["serve"], ["link", str(tmp_path / "documents.jsonl"), "--output", str(tmp_path / "out")]):
        assert main([*verb, *given]) == 2
        assert "workspace.json" in capsys.readouterr().err


def test_nothing_but_what_is_listed_can_be_carried() -> None:
    """Whatever settings there are, or will be."""
    plain = Config().plain()
    for section in fields(Config):
        for name, value in plain[section.name].items():
            if name not in CARRIED.get(section.name, ()):
                with pytest.raises(ConfigError, match=f"{section.name}.{name}, which no workspace may"):
                    load(None, {section.name: {name: value}}, [])
    known = {(section, name) for section, values in plain.items() for name in values}
    assert {(section, name) for section, names in CARRIED.items() for name in names} <= known


def test_what_our_own_workspaces_carry_is_allowed(workspace: Workspace) -> None:
    load(None, workspace.facts["settings"] | _settings(16), [])


def test_a_revision_covers_the_middle_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMEL_RAY_HOME", str(tmp_path / "home"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(33 * 2**20))
    before, ends = revision(str(weights)), revision(str(weights), whole=False)
    assert revision(str(weights)) == before
    with weights.open("r+b") as file:
        file.seek(16 * 2**20)
        file.write(b"x")
    assert revision(str(weights)) != before
    assert revision(str(weights), whole=False) == ends


def test_a_workspace_sealed_by_the_ends_of_its_models_opens_still(
    workspace: Workspace, config: Config
) -> None:
    names = workspace._models
    before = {name: revision(names[name], whole=False) for name in ("language", "clip", "mention_encoder")}
    now = workspace.facts["revisions"]
    assert before["language"] != now["language"]
    sealed = Workspace(workspace.folder, config, workspace.facts | {"revisions": now | before})
    sealed.check_models()
    sealed.facts["revisions"]["language"] = "another"
    with pytest.raises(WorkspaceError, match=r"models\.language"):
        sealed.check_models()
