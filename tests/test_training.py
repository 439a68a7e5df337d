"""Training the feature mapper: it learns from pictures, resumes, and counts the same however it is cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_training import DATA, FEW, tiny_workspace, trained
from torch import distributed

from gemel_ray.config import load
from gemel_ray.errors import WorkspaceError
from gemel_ray.gemel.exporting import export_gemel
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.encoders import Clip
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import checkpoint, train

pytestmark = pytest.mark.slow
Copies = Callable[[], Path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_workspace(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> list[dict[str, float]]:
    """The curve of one worker; `prepared` keeps its cache, and is copied without the training."""
    trained(prepared)
    return points(prepared)


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    """A copy of its own, with pictures encoded already but nothing trained."""
    shutil.copytree(prepared, tmp_path / "workspace", ignore=shutil.ignore_patterns("training", "mapper*"))
    for name in ("train", "dev"):
        shutil.copy(prepared.parent / f"{name}.parquet", tmp_path)
    return tmp_path / "workspace"


def points(workspace: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((workspace / "training" / "curve.json").read_text())
    return found


def assert_equal_curves(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert a[name] == pytest.approx(b[name], rel=2e-4), (name, a, b)


def test_the_loss_falls_and_the_rest_stays(
    prepared: Path, undisturbed: list[dict[str, float]], workspace: Path
) -> None:
    def rest(folder: Path) -> dict[str, str]:
        kept = [f for f in folder.rglob("*") if f.is_file() and f.suffix in (".npy", ".arrow")]
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in kept}

    looks = [p for p in undisturbed if "dev_loss" in p]
    assert [p["step"] for p in looks] == [0, 3, 6, 7]
    assert [p["step"] for p in looks if "accuracy" in p] == [0, 6, 7]
    losses = [p["loss"] for p in undisturbed if "loss" in p]
    assert len(losses) == 7
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert rest(prepared) == rest(workspace)
    _, facts = FeatureMapper.load(prepared / "mapper.safetensors")
    best = max((p for p in looks if "accuracy" in p), key=lambda p: (p["accuracy"], -p["dev_loss"]))
    assert (facts["step"], facts["dev_loss"]) == (best["step"], best["dev_loss"])
    config = load(None, read_facts(prepared)["settings"], [])
    before, after = (Workspace.open(f, config).version for f in (workspace, prepared))
    assert before != after, "links of another mapper are not comparable"
    assert (prepared / "training" / "curve.svg").read_text().startswith("<svg")
    assert list((prepared / "training" / "logs").iterdir())


@pytest.mark.ray
def test_two_workers_train_as_one_does(undisturbed: list[dict[str, float]], workspace: Path) -> None:
    said: list[str] = []
    best = trained(workspace, "train.workers=2", say=said.append)
    assert_equal_curves(points(workspace), undisturbed)
    assert any("step 7/7" in line for line in said), said
    assert best["step"] in (0, 6, 7)


def test_micro_batches_and_checkpointing_change_nothing(
    undisturbed: list[dict[str, float]], workspace: Path
) -> None:
    trained(workspace, "train.tokens=100", "train.checkpointing=true")
    assert_equal_curves(points(workspace), undisturbed)


def test_a_loss_that_is_not_finite_ends_the_training(workspace: Path) -> None:
    with pytest.raises(ValueError, match=r"step \d: the loss \(nan\) .* train.learning_rate"):
        trained(workspace, "train.learning_rate=1e30")
    assert not (workspace / "mapper.safetensors").exists()


def test_training_in_this_process_leaves_the_process_groups_of_others(workspace: Path) -> None:
    """An engine's, for example, which would no longer end in order."""
    if own := not distributed.is_initialized():  # the tests' engine may be here
        distributed.init_process_group("gloo", init_method=f"file://{workspace}/group", rank=0, world_size=1)
    trained(workspace, "train.epochs=0", "train.decode_every=0")
    assert distributed.is_initialized()
    if own:
        distributed.destroy_process_group()


def test_training_that_is_killed_and_run_again_ends_as_if_undisturbed(
    undisturbed: list[dict[str, float]], workspace: Path
) -> None:
    settings = ["--set", *" --set ".join(FEW).split(" ")]
    command = [sys.executable, "-m", "gemel_ray.cli", "train", "--workspace", str(workspace), *settings]
    for name in ("train", "dev"):
        command += [f"--{name}", str(workspace.parent / f"{name}.parquet")]
    running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    lines = []
    for line in running.stderr:
        lines.append(line)
        if line.startswith("step 3/"):  # its checkpoint is written after that is said, or not: both must do
            break
    time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert lines[-1].startswith("step 3/"), lines
    said: list[str] = []
    assert not (workspace / "mapper.safetensors").exists()
    trained(workspace, say=said.append)
    assert any(line.startswith("going on from step") for line in said), said
    assert_equal_curves(points(workspace), undisturbed)


def test_finished_says_so_and_other_settings_start_anew_but_encode_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of training's own cache: the pictures' would know them in any case.
    quick = ("train.epochs=0.4", "train.decode_every=0", "encode.cache=0")
    encoded: list[int] = []
    whole = Clip.encode_images
    monkeypatch.setattr(Clip, "encode_images", lambda c, i: encoded.append(len(i)) or whole(c, i))
    shutil.rmtree(workspace / "cache")
    first = trained(workspace, *quick)
    pictures = sum(encoded)
    assert pictures >= 49
    said: list[str] = []
    assert trained(workspace, *quick, say=said.append) == first
    assert any("finished already" in line for line in said), said
    said.clear()
    other = trained(workspace, *quick, "train.prefix=2", "train.hidden=8", say=said.append)
    assert any("training starts from the beginning" in line for line in said), said
    assert other["dev_loss"] != first["dev_loss"]
    assert sum(encoded) == pictures, "another training encodes nothing"
    mapper, _ = FeatureMapper.load(workspace / "mapper.safetensors")
    assert (mapper.prefix, mapper.hidden) == (2, 8)
    state = checkpoint.load(workspace / "training" / "checkpoint.pt")
    assert state is not None and state.weights["mapper"]["outer.weight"].any(), "the hidden layer learns"
    with pytest.raises(ValueError, match="linear"):
        export_gemel(workspace / "mapper.safetensors", workspace, "lm", "data", 1)
    trained(workspace, *quick, "retrieve.demonstrations=0")
    assert sum(encoded) == 2 * pictures, "other prompts are other examples"


def test_no_training_begins_behind_a_mapper_that_says_nothing(undisturbed: list[dict[str, float]]) -> None:
    """On this language model, of random weights, the undamped ridge is worse than zeros."""
    first = undisturbed[0]
    assert first["dev_loss"] <= first["dev_loss_zero"]
    assert {"dev_loss_without", "accuracy_without", "accuracy_zero"} <= first.keys()


def test_a_mapper_worse_than_no_pictures_is_not_put_into_the_workspace(workspace: Path) -> None:
    """One vector by chance, not trained, says less than nothing."""
    said: list[str] = []
    settings = ("train.start=random", "train.epochs=0", "train.prefix=1", "train.decode_every=0")
    best = trained(workspace, *settings, say=said.append)
    assert best["dev_loss"] > points(workspace)[0]["dev_loss_without"]
    assert any("NONE is put into" in line and "without pictures" in line for line in said), said
    assert not (workspace / "mapper.safetensors").exists()
    assert (workspace / "training" / "best.safetensors").exists()


def test_training_ends_when_its_patience_does(workspace: Path) -> None:
    trained(
        workspace,
        "train.learning_rate=1e-30",
        "train.evaluate_every=1",
        "train.patience=2",
        "train.decode_every=0",
    )
    assert [p["step"] for p in points(workspace)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": None}, "without a picture"),
        ({"image": b"no picture"}, "with an error.*first error"),
        ({"target": None}, "without a target"),
    ],
)
@pytest.mark.parametrize("side", ["train", "dev"])
def test_files_that_cannot_be_used_are_named(
    workspace: Path, tmp_path: Path, side: str, change: dict[str, Any], reason: str
) -> None:
    rows = pq.read_table(tmp_path / "dev.parquet").slice(0, 2).to_pylist()
    for row in rows:
        for mention in row["mentions"]:
            mention |= {k: v for k, v in change.items() if k == "target"}
        row |= {k: v for k, v in change.items() if k == "image"}
    bad = tmp_path / "bad.jsonl"
    if change.get("image"):
        (tmp_path / "bad.jpg").write_bytes(change["image"])
    for row in rows:
        picture = tmp_path / f"{row['id']}.jpg"
        if row["image"]:
            picture.write_bytes(row["image"])
        row["image"] = str(picture) if row["image"] else None
    bad.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=rf"bad\.jsonl: .*{reason}"):
        trained(workspace, **{side: str(bad)})


def test_settings_that_cannot_be_used_are_refused(workspace: Path) -> None:
    with pytest.raises(ValueError, match=r"assemble\.images"):
        trained(workspace, "assemble.images=false")
    with pytest.raises(WorkspaceError, match="was built with"):
        trained(workspace, "models.language=starter")
    with pytest.raises(ValueError, match=r"train\.batch cannot be 0"):
        trained(workspace, "train.batch=0")


def test_pictures_teach_names(workspace_folder: Path, tmp_path: Path) -> None:
    """On the starter's language model, a warm start that sees the features beats one so damped that every
    picture says the same."""
    file = tmp_path / "documents.parquet"
    pq.write_table(pq.read_table(DATA / "train.parquet").slice(240, 48), file)
    shutil.copytree(workspace_folder, tmp_path / "workspace")

    def dev_loss(*settings: str) -> float:
        quick = [
            "retrieve.demonstrations=0",
            "train.epochs=0",
            "train.dev_mentions=24",
            "train.decode_every=0",
        ]
        config = load(None, read_facts(workspace_folder)["settings"], [*quick, *settings])
        return train(config, [str(file)], [str(file)], tmp_path / "workspace", print)["dev_loss"]

    assert dev_loss() < dev_loss("train.ridge=1e9") - 0.2
