"""Keys and values of common beginnings of prompts, computed once and stored, without gradients.

Exact for decoding. In training an approximation (`train.keep`): the pictures of shared demonstrations give no
gradients, and their prefixes are those of some steps ago.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training.losses import embedded
from gemel_ray.training.packing import Family


@torch.no_grad()
def computed(model: Any, mapper: FeatureMapper, family: Family) -> Cache:
    """The trunk's keys and values."""
    inputs = embedded(model, mapper, [family.trunk], [family.pictures])
    cache: Cache = model.base_model(inputs_embeds=inputs, use_cache=True).past_key_values
    return cache


@dataclass
class Trunks:
    """The trunks of recent families, each stored for `steps` steps."""

    steps: int
    _stored: dict[bytes, tuple[int, Cache]] = field(default_factory=dict)

    def of(self, model: Any, mapper: FeatureMapper, family: Family, step: int) -> Cache:
        self._stored = {k: (at, cache) for k, (at, cache) in self._stored.items() if step < at + self.steps}
        key = family.trunk.tobytes() + family.pictures.tobytes()
        if key not in self._stored:
            self._stored[key] = step, computed(model, mapper, family)
        return self._stored[key][1]
