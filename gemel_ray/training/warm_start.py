"""A mapper to begin with, in which a prefix spells its picture's entity.

Ridge regression from the features onto the embeddings of the names' first tokens. It is not in the paper,
which starts at random: the language model reads names from the first step on, which spares most of the
training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training.examples import Examples


@torch.no_grad()
def ridge_start(mapper: FeatureMapper, model: Any, examples: Examples, ridge: float) -> None:
    """Set the mapper's linear layer; `ridge` is against the mean variance of the features."""
    features = torch.from_numpy(np.array(examples.queries)).double()
    end = examples.target(0)[-1]
    names = [
        (t[:-1] + [end] * mapper.prefix)[: mapper.prefix] for t in map(examples.target, range(len(examples)))
    ]
    embed = model.get_input_embeddings()
    tokens, places = np.unique(names, return_inverse=True)
    known = embed(torch.from_numpy(tokens).to(embed.weight.device)).double().cpu()
    wanted = known[torch.from_numpy(places.reshape(len(names), -1))].flatten(1)
    middle, mean = features.mean(0), wanted.mean(0)
    centred = features - middle
    covariance = centred.T @ centred
    damped = covariance + ridge * covariance.diagonal().mean() * torch.eye(
        len(covariance), dtype=torch.double
    )
    weight = torch.linalg.solve(damped, centred.T @ (wanted - mean)).T
    mapper.linear.weight.copy_(weight)
    mapper.linear.bias.copy_(mean - weight @ middle)
