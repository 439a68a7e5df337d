"""GEMEL's own files: imported, linked as its own code would, refused where they are wrong, written back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gemel_files
import h5py
import numpy as np
import pytest
import torch
from gemel_files import importing
from official_gemel import Official

from gemel_ray.cli import main
from gemel_ray.gemel.pickles import read_pickle
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.models.mapper import FeatureMapper

EMBEDDINGS = "SimCSE_train_mention_embeddings.pkl"
CASES = [[5, 4], [1, 4], [5, 0], [1, 0]]  # beams, demonstrations


@pytest.fixture(scope="module", params=["opt", "llama"])
def imported(request: Any, tmp_path_factory: Any) -> tuple[Path, Official]:
    folder = tmp_path_factory.mktemp(request.param)
    official = Official(**gemel_files.write(request.param, folder))
    assert main(importing(folder, folder / "workspace")) == 0
    return folder, official


@pytest.fixture(scope="module")
def opt_folder(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("files")
    gemel_files.write("opt", folder)
    return folder


@pytest.fixture(scope="module")
def linked(imported: tuple[Path, Official]) -> list[dict[str, Any]]:
    folder = imported[0]
    here = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            str(here / "link_cases.py"),
            *(str(folder / "workspace"), str(folder / "data" / "test.json"), json.dumps(CASES)),
        ],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(here.parent)},
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-beams-{case[1]}-demonstrations")
def test_links_are_what_the_official_code_computes(
    imported: tuple[Path, Official], linked: list[dict[str, Any]], case: list[int]
) -> None:
    official = imported[1]
    lines = (imported[0] / "data" / "test.json").read_text().splitlines()
    rows = {row["document_id"]: row for row in linked if row["case"] == case}
    assert len(rows) == gemel_files.TEST
    for item in map(json.loads, lines):
        row = rows[item["id"]]
        assert row["error"] is None
        shown = [f"{d['id']}/{d['mention']}" for d in official.demonstrations(item, case[1])]
        assert row["demonstrations"] == shown
        name, score, length = official.answer(item, case[1], case[0])
        pictures = sum(token < 0 for token in row["prompt"])
        assert pictures == case[1] + 1
        assert len(row["prompt"]) + pictures * (official.prefix - 1) == length
        assert row["entity"] == name
        assert row["score"] == pytest.approx(score, abs=1e-3)


def test_the_workspace_holds_the_files(imported: tuple[Path, Official]) -> None:
    folder, official = imported
    workspace = folder / "workspace"
    facts = json.loads((workspace / "workspace.json").read_text())
    assert facts["settings"]["retrieve"]["demonstrations"] == 4
    own = {"beams": 5, "score": "paper", "length_penalty": 1.0, "neighbour_weight": 0.0}
    assert facts["settings"]["generate"] == own
    assert facts["demonstrations"] == gemel_files.TRAIN
    tree = PrefixTree.open(workspace / "tree")
    found = gemel_files.nested([ids for ids, _ in tree.names()])
    assert found == next(iter(official.tree.values()))
    entities = Entities.open(workspace / "entities.arrow")
    told = {name: identity for identity, name in entities.of(range(len(entities)))}
    for item in official.train:
        assert told[item["target"]] == item["golden"]
    assert None in told.values()  # no data file tells these


def test_a_test_line_without_its_feature_is_an_error_row(
    imported: tuple[Path, Official], linked: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Through Encode alone: what follows has its error already."""
    import asyncio

    from gemel_ray.config import load
    from gemel_ray.knowledge.versions import read_facts
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.linking import linking_graph
    from gemel_ray.readers import documents

    folder = imported[0] / "workspace"
    config = load(None, read_facts(folder)["settings"], [])
    workspace = Workspace.open(folder, config)
    line = json.loads((imported[0] / "data" / "test.json").read_text().splitlines()[0])
    file = tmp_path / "test.json"
    file.write_text(json.dumps(line | {"img_url": "https://pictures.example/unknown.jpg"}))
    segment = linking_graph(config, workspace).segment(["detect", "encode"], workspace)
    rows = [r for t in documents(str(file)) for r in asyncio.run(segment.run(t)).to_pylist()]
    segment.close()
    assert "https://pictures.example/unknown.jpg" in rows[0]["error"]


def test_export_gives_the_checkpoint_back(imported: tuple[Path, Official], tmp_path: Path) -> None:
    folder, official = imported
    arguments = ["export-gemel", "--workspace", str(folder / "workspace"), "--dataset", "logos"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    state = torch.load(tmp_path / "lm_logos_linear_4token_4examples.pkl", weights_only=True)
    assert torch.equal(state["weight"], official.weight.half())
    assert torch.equal(state["bias"], official.bias.half())
    assert state["weight"].dtype == torch.float16


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("file", "spoil", "says"),
    [
        ("prefix_tree_opt.pkl", lambda p: p.write_bytes(pickle.dumps(Evil())), "posix.system"),
        ("prefix_tree_opt.pkl", lambda p: p.write_bytes(pickle.dumps({2: {4: {}}, 3: {}})), "BOS"),
        ("prefix_tree_opt.pkl", lambda p: p.write_bytes(pickle.dumps({2: {90_000: {2: {}}}})), "90000"),
        ("prefix_tree_opt.pkl", lambda p: p.unlink(), "prefix_tree*.pkl"),
        (
            EMBEDDINGS,
            lambda p: p.write_bytes(p.read_bytes()[:-50]),
            "not a complete pickle",
        ),
        (
            EMBEDDINGS,
            lambda p: p.write_bytes(pickle.dumps(read_pickle(p)[1:])),
            "59 rows",
        ),
        ("train.json", lambda p: p.write_text(p.read_text() + "{}\n"), "train.json:62"),
        (
            "train.json",
            lambda p: p.write_text(p.read_text().replace("pictures.example", "elsewhere.example", 1)),
            "elsewhere.example",
        ),
        ("clip_vit_large_patch14_1024.hdf5", lambda p: p.write_bytes(b"no hdf5"), "cannot read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_files_are_refused_by_name(
    opt_folder: Path, tmp_path: Path, capsys: Any, file: str, spoil: Any, says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(opt_folder, copy)
    spoil(copy / "data" / file)
    assert main(importing(copy, tmp_path / "out")) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"weight": torch.zeros(256, 24), "bias": torch.zeros(256), "evil": Evil()}, "system"),
        ({"weight": torch.zeros(250, 24), "bias": torch.zeros(250)}, "make no 4 visual vectors"),
        ({"weight": torch.zeros(512, 24), "bias": torch.zeros(512)}, "trained for another model"),
        ({"weight": torch.zeros(256, 30), "bias": torch.zeros(256)}, "another CLIP"),
        ({"kernel": torch.zeros(2)}, "not a linear mapper"),
    ],
    ids=["evil", "prefix", "model", "clip", "names"],
)
def test_wrong_checkpoints_are_refused(
    opt_folder: Path, tmp_path: Path, capsys: Any, state: dict[str, Any], says: str
) -> None:
    arguments = importing(opt_folder, tmp_path / "out")
    checkpoint = tmp_path / "x_y_linear_4token_4examples.pkl"
    torch.save(state, checkpoint)
    arguments[3] = str(checkpoint)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


VALUES = [
    {2: {5: {2: {}}}},
    [1, 2.5, "text", None, True],
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    np.float32(1.5),
    torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_plain_pickles_are_read(value: Any, protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "plain.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_pickle(file)
    if isinstance(value, dict | list):
        assert found == value
    else:
        assert np.array_equal(np.asarray(found), np.asarray(value))


@pytest.mark.parametrize(
    "program",
    [
        pickle.dumps(Evil()),
        pickle.dumps(np.array([Evil()], dtype=object)),
        pickle.dumps(print),
        b"cnumpy\nndarray\n(I100000000000\ntR.",
        b"cbuiltins\neval\n(V1\ntR.",
        b"Pexternal\n.",
        pickle.dumps(np.zeros(1000))[:-300],
    ],
)
def test_everything_else_is_refused(program: bytes, tmp_path: Path) -> None:
    file = tmp_path / "evil.pkl"
    file.write_bytes(program)
    with pytest.raises(ValueError, match=r"evil\.pkl is (refused|not a complete pickle)"):
        read_pickle(file)


def test_a_tree_that_holds_itself_is_refused(tmp_path: Path) -> None:
    from gemel_ray.gemel.artefacts import read_names

    loop: dict[int, Any] = {}
    loop[3] = loop
    wide: dict[int, Any] = {}
    for _ in range(40):  # 2 ** 40 names in a few hundred bytes
        wide = {3: wide, 4: wide}
    for tree in (loop, wide):
        file = tmp_path / "prefix_tree.pkl"
        file.write_bytes(pickle.dumps({2: tree}))
        with pytest.raises(ValueError, match="two places"):
            read_names(file)


def test_a_feature_of_another_file_is_refused(tmp_path: Path) -> None:
    from gemel_ray.gemel.artefacts import read_features

    (tmp_path / "secret").write_bytes(b"x" * 64)
    file = tmp_path / "features.hdf5"
    with h5py.File(file, "w") as made:
        made.create_dataset("a.jpg", (16,), "f4", external=[(str(tmp_path / "secret"), 0, 64)])
    with pytest.raises(ValueError, match="is not in this file itself"):
        list(read_features(file))


def test_the_mapper_has_the_checkpoint_s_weights(imported: tuple[Path, Official]) -> None:
    folder, official = imported
    mapper, _ = FeatureMapper.load(folder / "workspace" / "mapper.safetensors")
    feature = torch.randn(1, gemel_files.FEATURE)
    expected = (official.weight @ feature[0] + official.bias).view(official.prefix, -1)
    assert torch.allclose(mapper(feature)[0], expected, atol=1e-5)
