"""Training the feature mapper on the starter's models: it learns from pictures; only the mapper changes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gemel_ray.config import Config, load
from gemel_ray.knowledge.workspace import Workspace, read_facts
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import train

pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[1] / "gemel_ray" / "starter" / "data"
QUICK = ["retrieve.demonstrations=1", "train.batch=8", "train.dev_mentions=24", "train.dtype=float32"]


def trained(workspace_folder: Path, folder: Path, *settings: str) -> tuple[float, Path, list[str]]:
    """Dev loss, workspace and what was said, of a training on 96 documents; they serve as dev set, too."""
    shutil.copytree(workspace_folder, folder / "workspace")
    documents = folder / "documents.parquet"
    pq.write_table(pq.read_table(DATA / "train.parquet").slice(240, 96), documents)
    said: list[str] = []
    config: Config = load(None, read_facts(workspace_folder)["settings"], [*QUICK, *settings])
    loss = train(config, [str(documents)], [str(documents)], folder / "workspace", said.append)
    return loss, folder / "workspace", said


def test_pictures_teach_names(workspace_folder: Path, tmp_path: Path) -> None:
    """A warm start that sees the features beats one so damped that every picture says the same."""
    (tmp_path / "seeing").mkdir()
    (tmp_path / "blind").mkdir()
    seeing, _, _ = trained(workspace_folder, tmp_path / "seeing", "train.epochs=0")
    blind, _, _ = trained(workspace_folder, tmp_path / "blind", "train.epochs=0", "train.ridge=1e9")
    assert seeing < blind


def test_steps_lower_the_loss_and_leave_the_rest_alone(workspace_folder: Path, tmp_path: Path) -> None:
    def rest(folder: Path) -> dict[str, str]:
        kept = [f for f in folder.rglob("*") if f.is_file() and f.suffix in (".npy", ".arrow")]
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in kept}

    loss, workspace, said = trained(
        workspace_folder,
        tmp_path,
        "train.epochs=0.5",
        "train.ridge=1e9",
        "train.learning_rate=0.003",
        "train.look=3",
    )
    start = float(said[1].removeprefix("warm start: dev ").split(";")[0])
    assert loss < start - 0.01, said
    assert rest(workspace) == rest(workspace_folder)
    mapper, facts = FeatureMapper.load(workspace / "mapper.safetensors")
    assert facts["dev_loss"] == pytest.approx(loss)
    assert facts["step"] > 0
    assert mapper.prefix == 4
    config = load(None, read_facts(workspace)["settings"], [])
    before = Workspace.open(workspace_folder, config).version
    assert Workspace.open(workspace, config).version != before, "links of another mapper are not comparable"
