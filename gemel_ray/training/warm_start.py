"""A mapper to begin with, whose prefixes spell the pictures' entities.

Ridge regression from the features onto the embeddings of the names' first tokens. The paper starts with
random weights instead. With this start the language model reads names from the first step, which saves most
of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.settings import Train
from gemel_ray.training.dev import Dev, quality, summary, zeros
from gemel_ray.training.examples import Examples

_FACTORS = (1, 100, 10_000)  # of train.ridge


@torch.no_grad()
def ridge_start(mapper: FeatureMapper, model: Any, examples: Examples, ridge: float) -> None:
    """Set the mapper's linear layer; `ridge` is in units of the mean variance of the features."""
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
    """Set the mapper to the best on the dev set: of the ridge, of stronger ridges (few examples of many
    features overfit), or zeros, so that training never begins with a mapper that is worse than zeros."""
    tried = {"zeros": zeros(mapper)}
    for ridge in (options.ridge * factor for factor in _FACTORS):
        tried[f"ridge {ridge:g}"] = start = zeros(mapper)
        ridge_start(start, model, examples, ridge)
    points = {name: dev.measure(start, decoded=options.decode_every > 0) for name, start in tried.items()}
    best = max(points, key=lambda name: quality(points[name]))
    mapper.load_state_dict(tried[best].state_dict())
    figures = "; ".join(f"{name}: {summary(point)}" for name, point in points.items())
    say(f"to begin with: {best}; tried {figures}")
