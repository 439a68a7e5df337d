"""A workspace's mapper as a checkpoint that GEMEL's code loads: a state_dict in float16."""

from __future__ import annotations

from pathlib import Path

import torch

from gemel_ray.errors import Mistake
from gemel_ray.models.mapper import FeatureMapper


def export_gemel(mapper_file: Path, folder: Path, language: str, dataset: str, demonstrations: int) -> Path:
    """Write LANGUAGE_DATASET_linear_{k}token_{n}examples.pkl into `folder`. Raises ValueError for a mapper
    that is not linear, or whose numbers are too large for float16."""
    mapper, _ = FeatureMapper.load(mapper_file)
    if mapper.hidden:
        raise Mistake(f"{mapper_file} has a hidden layer of {mapper.hidden}: GEMEL's mapper is linear")
    state = {name: weight.half() for name, weight in mapper.linear.state_dict().items()}
    if not all(weight.isfinite().all() for weight in state.values()):
        raise Mistake(f"{mapper_file} holds numbers beyond float16, which GEMEL's checkpoints are in")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{language}_{dataset}_linear_{mapper.prefix}token_{demonstrations}examples.pkl"
    torch.save(state, folder / name)
    return folder / name
