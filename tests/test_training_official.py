"""The loss of training against GEMEL's own code, in workspaces that import-gemel made of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemel_files
import pytest
from official_gemel import Official

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import Example, item_losses
from gemel_ray.training.examples import prepared

SHOTS = 4


@pytest.fixture(scope="module", params=["opt", "llama"])
def imported(request: Any, tmp_path_factory: Any) -> tuple[Path, Official]:
    folder = tmp_path_factory.mktemp(request.param)
    official = Official(**gemel_files.write(request.param, folder))
    assert main(gemel_files.importing(folder, folder / "workspace")) == 0
    return folder, official


@pytest.fixture(scope="module")
def mapper(imported: tuple[Path, Official]) -> FeatureMapper:
    return FeatureMapper.load(imported[0] / "workspace" / "mapper.safetensors")[0]


def examples(folder: Path, file: str) -> list[Example]:
    config: Config = load(None, read_facts(folder / "workspace")["settings"], [])
    assert config.retrieve.allow_itself, "import-gemel's workspaces say so: training must not heed it"
    workspace = Workspace.open(folder / "workspace", config)
    return list(prepared(config, workspace, [str(folder / "data" / file)], lambda _: None))


class Training(Official):
    """As the official code trains: it sorts the whole bank, then leaves the item itself out."""

    def demonstrations(self, item: dict[str, Any], count: int) -> list[dict[str, Any]]:
        def same(shown: dict[str, Any]) -> bool:
            return (shown["mention"], shown["text"]) == (item["mention"], item["text"])

        nearest = super().demonstrations(item, count + sum(map(same, self.train)))
        return [shown for shown in nearest if not same(shown)][-count:]


def test_a_new_item_s_loss_is_the_official_one(
    imported: tuple[Path, Official], mapper: FeatureMapper
) -> None:
    folder, official = imported
    items = [json.loads(line) for line in (folder / "data" / "test.json").read_text().splitlines()]
    losses = item_losses(official.lm, mapper, examples(folder, "test.json"))
    assert losses == pytest.approx([official.loss(item, SHOTS) for item in items], abs=1e-4)


def test_lines_that_share_an_id_keep_their_own_targets(imported: tuple[Path, Official]) -> None:
    """The NIL line is a copy of a solved one, its id included: it has no target and is left out."""
    folder, official = imported
    lines = [json.loads(line) for line in (folder / "data" / "train.json").read_text().splitlines()]
    assert len({line["id"] for line in lines}) < len(lines)
    encode = official.tokenizer.encode
    expected = [[*encode(m["target"], add_special_tokens=False), 2] for m in official.train]
    assert [e.target for e in examples(folder, "train.json")] == expected


def test_a_training_item_s_loss_is_the_official_one_without_itself(
    imported: tuple[Path, Official], mapper: FeatureMapper
) -> None:
    """The bank holds these items: one that demonstrated itself would have another loss."""
    folder, official = imported
    found = examples(folder, "train.json")
    some = range(0, gemel_files.TRAIN, 6)
    losses = item_losses(official.lm, mapper, [found[i] for i in some])
    items = [official.train[i] for i in some]
    training = Training(**vars(official))
    assert losses == pytest.approx([training.loss(item, SHOTS) for item in items], abs=1e-4)
    assert losses != pytest.approx([official.loss(item, SHOTS) for item in items], abs=1e-2)
