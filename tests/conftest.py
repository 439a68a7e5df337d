"""Real parts for the tests: the starter's models, a small workspace, and one engine for all of them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import live
import on_serve
import pyarrow.parquet as pq
import pytest
import torch
from files import DATA
from PIL import Image

from gemel_ray.config import Config, load
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace

SMALL = [  # float32, so that what is compared differs by rounding only; small, so that tests stay small
    "generate.dtype=float32",
    "generate.length=1024",
    "generate.cache_gib=1.0",
    "retrieve.demonstrations=4",
    "offline.sized=false",  # the same on any machine
    "generate.gpu_memory=0.3",  # some tests start another engine beside
]


@pytest.hookimpl(optionalhook=True)  # pytest alone needs no xdist
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Side by side, they share the cores: threads that wait for one another's cores wait long."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(specs))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    from side_by_side import ByNeed

    return ByNeed(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before their fixtures: an engine that no test asks for would be started."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


@pytest.fixture(scope="session")
def workspace_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's 421 entities and 240 of its solved examples, with pictures."""
    folder = tmp_path_factory.mktemp("knowledge")
    train = folder / "train.parquet"
    pq.write_table(pq.read_table(DATA / "train.parquet").slice(0, 240), train)
    build(load(None, {}, SMALL), str(DATA / "entities.jsonl"), [str(train)], folder / "workspace", print)
    return folder / "workspace"


@pytest.fixture(scope="session")
def config(workspace_folder: Path) -> Config:
    return load(None, read_facts(workspace_folder)["settings"], SMALL)


@pytest.fixture(scope="session")
def workspace(workspace_folder: Path, config: Config) -> Workspace:
    return Workspace.open(workspace_folder, config)


@pytest.fixture(scope="session")
def generating(workspace: Workspace, config: Config) -> Iterator[Any]:
    """The Generate stage with the one engine of this test process."""
    work = config.generate.start(workspace, config.line.stages)
    yield work
    work.close()


@pytest.fixture(scope="session")
def live_url(workspace: Workspace, config: Config, generating: Any) -> Iterator[str]:
    """The real endpoint in this process."""
    with live.served(config, workspace, generating) as url:
        yield url


@pytest.fixture(scope="session")
def served(config: Config, workspace_folder: Path) -> Iterator[on_serve.Served]:
    """The real endpoint on Ray Serve. test_online_upgrade.py is the last to need it, and ends it."""
    with on_serve.endpoint(config, workspace_folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def messy_inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Good rows beside every kind of bad one, in three files."""
    folder = tmp_path_factory.mktemp("documents")
    pictures = pq.read_table(DATA / "test.parquet").slice(0, 40).to_pylist()
    good = [p for p in pictures if p["id"].startswith("test-seen")]
    (folder / "logo.jpg").write_bytes(good[0]["image"])
    (folder / "broken.jpg").write_bytes(good[1]["image"][:200])
    (folder / "words.jpg").write_text("this is no picture")
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    (folder / "bomb.png").write_bytes(bomb.getvalue())

    def line(name: str, **fields: Any) -> dict[str, Any]:
        text = "Adobe and Google met in Paris."
        return {"id": name, "text": text, "mentions": [{"start": 0, "end": 5}]} | fields

    lines = [
        line("plain", image="logo.jpg"),
        line("no-picture"),
        line("two", image="logo.jpg", mentions=[{"start": 0, "end": 5}, {"start": 10, "end": 16}]),
        line("found", mentions=None),
        line("none-found", text="Nothing is named here.", mentions=None),
        line("moving", image="moving.gif"),
        line("broken", image="broken.jpg"),
        line("words", image="words.jpg"),
        line("bomb", image="bomb.png"),
        line("missing", image="nowhere.jpg"),
        line("empty", text=""),
        line("outside", mentions=[{"start": 25, "end": 400}, {"start": 0, "end": 5}]),
        line("long", text="word " * 3000 + "Adobe", mentions=[{"start": 15000, "end": 15005}]),
        {"id": "official", "text": "Apple opened a shop.", "mention": "Apple", "target": "Apple"},
    ]
    first = folder / "messy.jsonl"
    first.write_text("\n".join([*map(json.dumps, lines), '{"id": "cut', "[1, 2]"]) + "\n")
    second = folder / "pictures.parquet"
    pq.write_table(pq.read_table(DATA / "test.parquet").slice(0, 12), second)
    third = folder / "truncated.parquet"
    third.write_bytes(second.read_bytes()[:5000])
    return [str(first), str(second), str(third)]
