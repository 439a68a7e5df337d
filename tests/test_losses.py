"""The loss of training: what Hugging Face and GEMEL's own code compute, whatever the batch around an item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemel_files
import numpy as np
import pytest
import torch
from official import Official

from gemel_ray.cli import main
from gemel_ray.config import Config, load
from gemel_ray.knowledge.workspace import Workspace, read_facts
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import Example, item_losses
from gemel_ray.training.examples import prepared
from gemel_ray.training.losses import micro_batches, token_losses, trained_length

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
    assert config.retrieve.itself, "import-gemel's workspaces say so: training must not heed it"
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


def test_a_training_item_s_loss_is_the_official_one_without_itself(
    imported: tuple[Path, Official], mapper: FeatureMapper
) -> None:
    """The bank holds these items: one that demonstrated itself would have another loss."""
    folder, official = imported
    found = examples(folder, "train.json")
    assert len(found) == gemel_files.TRAIN
    some = range(0, gemel_files.TRAIN, 6)
    losses = item_losses(official.lm, mapper, [found[i] for i in some])
    items = [official.train[i] for i in some]
    training = Training(**vars(official))
    assert losses == pytest.approx([training.loss(item, SHOTS) for item in items], abs=1e-4)
    assert losses != pytest.approx([official.loss(item, SHOTS) for item in items], abs=1e-2)


def test_it_is_hugging_face_s_own_loss(imported: tuple[Path, Official], mapper: FeatureMapper) -> None:
    """With every label but the target's at -100, the prompt put together by hand."""
    folder, official = imported
    found = examples(folder, "test.json")
    embed = official.lm.get_input_embeddings()
    expected = []
    for example in found:
        prefixes = iter(mapper(torch.from_numpy(example.features)))
        pieces = [next(prefixes) if t < 0 else embed(torch.tensor([t])) for t in example.prompt]
        prompt = torch.cat([*pieces, embed(torch.tensor(example.target))])
        labels = torch.tensor([-100] * (len(prompt) - len(example.target)) + example.target)
        with torch.no_grad():
            expected.append(official.lm(inputs_embeds=prompt[None], labels=labels[None]).loss.item())
    assert item_losses(official.lm, mapper, found) == pytest.approx(expected, abs=1e-4)


def test_the_batch_around_an_item_does_not_change_its_loss(
    imported: tuple[Path, Official], mapper: FeatureMapper
) -> None:
    folder, official = imported
    found = examples(folder, "test.json")
    alone = item_losses(official.lm, mapper, found, tokens=1)
    assert len({len(e.prompt) for e in found}) > 1, "padding takes part"
    assert item_losses(official.lm, mapper, found, tokens=100_000) == pytest.approx(alone, abs=1e-5)


def test_gradients_reach_the_mapper_and_nothing_else(imported: tuple[Path, Official]) -> None:
    folder, official = imported
    official.lm.requires_grad_(False)
    learning, _ = FeatureMapper.load(folder / "workspace" / "mapper.safetensors")
    learning.requires_grad_(True)
    token_losses(official.lm, learning, examples(folder, "test.json")[:2]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.parameters())
    assert all(p.grad is None for p in official.lm.parameters())


def test_micro_batches_hold_everything_once_within_their_budget() -> None:
    rng = np.random.default_rng(0)
    made = [
        Example([5] * int(n) + [-1], np.zeros((1, 3), np.float32), [7, 2]) for n in rng.integers(3, 90, 50)
    ]
    length = trained_length(4)
    parts = list(micro_batches(made, length, 200))
    assert sorted(i for part in parts for i in part) == list(range(50))
    assert all(len(part) * max(length(made[i]) for i in part) <= 200 for part in parts)
    assert len(parts) < 30, "they are filled"
    lone = list(micro_batches(made, length, 1))
    assert [len(part) for part in lone] == [1] * 50
