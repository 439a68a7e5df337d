"""Measures how well the starter's CLIP distinguishes the logo set's pictures.

`python -m gemel_ray.starter.measure_clip` prints, for the pictures of test-seen, how often the nearest
training picture shows the same entity: among all entities, and, for mentions that name a family, among
those of the family; with the projected feature and with the one before the projection.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from gemel_ray.models.encoders import Clip, Vectors, unit
from gemel_ray.pictures.images import read_image
from gemel_ray.records import Row
from gemel_ray.starter.logos import DATA
from gemel_ray.starter.models import clip

_AT_ONCE = 256


def main() -> None:
    """Print the table."""
    train = pq.read_table(DATA / "train.parquet").to_pylist()
    seen = [r for r in pq.read_table(DATA / "test.parquet").to_pylist() if r["id"].startswith("test-seen")]
    features: tuple[Literal["hidden", "projected"], ...] = ("projected", "hidden")
    for feature in features:
        model = Clip(str(clip()), feature=feature)
        cosines = encoded(model, seen) @ encoded(model, train).T
        everywhere, in_family = nearest(cosines, seen, train)
        print(f"{feature}, {model.width} wide: all {everywhere:.1%}, within the family {in_family:.1%}")


def encoded(model: Clip, rows: list[Row]) -> Vectors:
    """Unit vectors of the rows' pictures."""
    pictures = [model.prepare(read_image(row["image"], None)) for row in rows]
    parts = [model.encode_images(pictures[i : i + _AT_ONCE]) for i in range(0, len(pictures), _AT_ONCE)]
    return unit(np.concatenate(parts))


def nearest(cosines: Vectors, queries: list[Row], keys: list[Row]) -> tuple[float, float]:
    """Share of queries whose nearest key shows their entity: among all keys, and within the family."""
    targets = np.array([row["mentions"][0]["target"] for row in keys])
    families = np.array([target.split()[0] for target in targets])
    everywhere, in_family = [], []
    for row, similar in zip(queries, cosines, strict=True):
        mention = row["mentions"][0]
        target, family = mention["target"], mention["target"].split()[0]
        everywhere.append(targets[similar.argmax()] == target)
        if row["text"][mention["start"] : mention["end"]] == family:
            in_family.append(targets[np.where(families == family, similar, -2).argmax()] == target)
    return float(np.mean(everywhere)), float(np.mean(in_family))


if __name__ == "__main__":
    main()
