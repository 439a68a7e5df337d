"""Makes the starter's mapper.safetensors, and measures what its prefixes contribute.

    python -m gemel_ray.starter.train_mapper FOLDER [--set train.epochs=1 ...]

The shipped one was trained with train.epochs=1, train.learning_rate=0.001, train.evaluate_every=20 and
train.decode_every=40: 160 steps in 10 minutes on two cores. Trains without demonstrations: then only the
prefix identifies the brand, and a step is short. Before and after, the test's mentions are decoded with the
right picture, with another and without, with and without demonstrations (which are always retrieved by the
right picture: only the query's prefix changes). FOLDER/workspace/training/best.safetensors is the result;
people decide by the figures whether it replaces the shipped one. If killed, run the same command again to
continue.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemel_ray.config import Config, load
from gemel_ray.knowledge.bank import QUERY_IMAGE
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import Example, item_losses, train
from gemel_ray.training.decoding import accuracy
from gemel_ray.training.examples import prepared
from gemel_ray.training.frozen import language_model
from gemel_ray.training.losses import share_beginnings

DATA = Path(__file__).parent / "data"
_SETTINGS = ["models.mapper=none", "retrieve.demonstrations=0"]


def main(folder: Path, settings: Sequence[str], mentions: int) -> None:
    """Build, train, measure."""
    workspace, start = folder / "workspace", folder / "start"
    if not (workspace / "workspace.json").exists():
        examples = [str(DATA / "train.parquet")]
        build(load(None, {}, _SETTINGS), str(DATA / "entities.jsonl"), examples, workspace, _say)
    config = load(None, read_facts(workspace)["settings"], [*_SETTINGS, *settings])
    files = [str(DATA / "train.parquet")], [str(DATA / "dev.parquet")]
    if not start.exists():
        untrained = replace(config, train=replace(config.train, epochs=0.0))
        train(untrained, *files, workspace, _say)
        shutil.copytree(workspace / "training", start)
    train(config, *files, workspace, _say)
    mappers = {"start": start / "best.safetensors", "trained": workspace / "training" / "best.safetensors"}
    model = language_model(str(Workspace.open(workspace, config).language_model), config.train, "cpu")
    share_beginnings(model, FeatureMapper.load(mappers["start"])[0])
    for demonstrations in (0, 4):
        shots = replace(config, retrieve=replace(config.retrieve, demonstrations=demonstrations))
        for name, file in mappers.items():
            number = mentions // 2 if demonstrations else mentions  # prompts are five times as long
            figures = _measured(shots, workspace, model, FeatureMapper.load(file)[0], number)
            print(f"{demonstrations} demonstrations, {name:<8} " + "  ".join(figures), flush=True)


def _measured(config: Config, folder: Path, model: Any, mapper: FeatureMapper, mentions: int) -> list[str]:
    """For brands seen in training: loss, and accuracy by the picture in the query."""
    workspace = Workspace.open(folder, config)
    tests = prepared(config, workspace, [str(DATA / "test.parquet")], _say)
    seen = tests[:520]  # the others have brands that training never showed
    chosen = seen[:: max(1, len(seen) // mentions)]
    moved = [*chosen[len(chosen) // 2 :], *chosen[: len(chosen) // 2]]
    pictures = {
        "own": chosen,
        "another's": [_with(e, o) for e, o in zip(chosen, moved, strict=True)],
        "none": [_without(e) for e in chosen],
    }
    losses = item_losses(model, mapper, chosen)
    figures = [f"loss {sum(losses) / len(losses):.3f}"]
    for name, items in pictures.items():
        figures.append(f"{name} {accuracy(model, mapper, workspace.tree, items):.1%}")
    return [*figures, f"({len(chosen)} mentions)"]


def _with(example: Example, other: Example) -> Example:
    features = example.features.copy()
    features[-1] = other.features[-1]
    return replace(example, features=features)


def _without(example: Example) -> Example:
    prompt = [token for token in example.prompt if token != QUERY_IMAGE]
    return replace(example, prompt=prompt, features=example.features[:-1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    options.add_argument("--mentions", type=int, default=260, help="of the test set, measured with")
    parsed = options.parse_args()
    main(parsed.folder, parsed.set, parsed.mentions)
