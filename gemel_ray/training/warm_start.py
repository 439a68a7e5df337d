"""A mapper to begin with, in which a prefix spells its picture's entity.

Ridge regression from the features onto the embeddings of the names' first tokens. It is not in the paper,
which starts at random: the language model reads names from the first step on, which spares most of the
training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.settings import Train
from gemel_ray.training.dev import Dev, order, told, zeros
from gemel_ray.training.examples import Examples

_DAMPED = (1, 100, 10_000)  # times train.ridge


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


def best_start(
    mapper: FeatureMapper,
    dev: Dev,
    model: Any,
    examples: Examples,
    options: Train,
    say: Callable[[str], None],
) -> None:
    """Set the mapper to what does best on the dev set: the ridge, the same damped more (few examples of many
    features say too much), or zeros, so that no training begins behind a mapper that says nothing."""
    tried = {"zeros": zeros(mapper)}
    for ridge in (options.ridge * more for more in _DAMPED):
        tried[f"ridge {ridge:g}"] = made = zeros(mapper)
        ridge_start(made, model, examples, ridge)
    looks = {name: dev.look(made, decoded=options.decode_every > 0) for name, made in tried.items()}
    best = max(looks, key=lambda name: order(looks[name]))
    mapper.load_state_dict(tried[best].state_dict())
    say(f"to begin with: {best}; tried " + "; ".join(f"{name}: {told(look)}" for name, look in looks.items()))
