"""How well the starter's CLIP tells the logo set's pictures apart.

`python -m gemel_ray.starter.measure_clip [--data FOLDER]` prints, for the
pictures of test-seen, how often the nearest training picture shows the same
entity: among all entities, and among those of the mention's family; with the
projected feature and with the one before the projection. Then how often the
picture's nearest name is right, for seen and unseen entities.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gemel_ray.starter.brands import FAMILIES, brands
from gemel_ray.starter.logos import DATA


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the starter's CLIP.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with parquet files, clip/")
    data = parser.parse_args().data
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{data / 'clip'}")
    model.eval()

    train = pq.read_table(data / "train.parquet").to_pylist()
    test = pq.read_table(data / "test.parquet").to_pylist()
    seen = [row for row in test if row["id"].startswith("test-seen")]
    images = {"train": batch(train, preprocess), "seen": batch(seen, preprocess)}
    for title, encode in {
        "projected feature": model.encode_image,
        "before the projection": before_projection(model),
    }.items():
        keys, queries = (features(encode, images[part]) for part in ("train", "seen"))
        everywhere, in_family = nearest_neighbour(keys, train, queries, seen)
        print(f"{title}, {keys.shape[1]} wide: all {everywhere:.1%}, family {in_family:.1%}")

    names = name_features(model, data)
    for part in ("test-seen", "test-unseen"):
        rows = [row for row in test if row["id"].startswith(part)]
        print(f"{part}: nearest name right {name_accuracy(model, names, preprocess, rows):.1%}")


def batch(rows: list[dict[str, Any]], preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
    """The documents' pictures as the model takes them."""
    return torch.stack([preprocess(Image.open(io.BytesIO(row["image"]))) for row in rows])


def features(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Unit feature vectors."""
    parts = [images[i : i + 256] for i in range(0, len(images), 256)]
    return torch.cat([F.normalize(encode(part), dim=-1) for part in parts])


def before_projection(model: open_clip.CLIP) -> Callable[[Tensor], Tensor]:
    """A ResNet's attention-pooled feature: what its last linear layer would project."""
    pool = model.visual.attnpool
    width = pool.c_proj.in_features

    def encode(images: Tensor) -> Tensor:
        projection = pool.c_proj
        # The pooling uses the layer's weights, never calls it: only a swap leaves it out.
        pool.c_proj = torch.nn.Linear(width, width)
        torch.nn.init.eye_(pool.c_proj.weight)
        torch.nn.init.zeros_(pool.c_proj.bias)
        try:
            encoded: Tensor = model.encode_image(images)
            return encoded
        finally:
            pool.c_proj = projection

    return encode


def nearest_neighbour(
    keys: Tensor,
    train: list[dict[str, Any]],
    queries: Tensor,
    test: list[dict[str, Any]],
) -> tuple[float, float]:
    """Share of right nearest pictures: among all, and within the family that is mentioned."""
    family = {brand.name: brand.family for brand in brands()}
    targets = [row["mentions"][0]["target"] for row in train]
    families = [family[target] for target in targets]
    right: list[bool] = []
    right_in_family: list[bool] = []
    for row, scores in zip(test, queries @ keys.T, strict=True):
        mention = row["mentions"][0]
        right.append(targets[int(scores.argmax())] == mention["target"])
        word = row["text"][mention["start"] : mention["end"]]
        if word in FAMILIES:
            members = torch.tensor([word == other for other in families])
            best = int(scores.masked_fill(~members, -2).argmax())
            right_in_family.append(targets[best] == mention["target"])
    return sum(right) / len(right), sum(right_in_family) / len(right_in_family)


def name_features(model: open_clip.CLIP, data: Path) -> Tensor:
    """The text features of all entities' names."""
    tokenize = open_clip.get_tokenizer(f"local-dir:{data / 'clip'}")
    texts = tokenize([f"a logo of {brand.name}" for brand in brands()])
    encoded: Tensor = model.encode_text(texts, normalize=True)
    return encoded


def name_accuracy(
    model: open_clip.CLIP,
    names: Tensor,
    preprocess: Callable[[Image.Image], Tensor],
    rows: list[dict[str, Any]],
) -> float:
    """How often a picture's nearest name is its entity's."""
    best = (features(model.encode_image, batch(rows, preprocess)) @ names.T).argmax(1).tolist()
    right = [
        bool(brands()[i].name == row["mentions"][0]["target"]) for i, row in zip(best, rows, strict=True)
    ]
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
