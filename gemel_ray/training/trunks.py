"""What prompts begin with, computed once and kept: its keys and values, without gradients.

Exact for decoding. In training it is an approximation (`train.keep`): the pictures of the demonstrations that
all are shown teach nothing, and are seen as the mapper of some steps ago mapped them.
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
    """Those that several examples begin with, for `steps` steps each."""

    steps: int
    _kept: dict[bytes, tuple[int, Cache]] = field(default_factory=dict)

    def of(self, model: Any, mapper: FeatureMapper, family: Family, step: int) -> Cache:
        self._kept = {k: (at, cache) for k, (at, cache) in self._kept.items() if step < at + self.steps}
        key = family.trunk.tobytes() + family.pictures.tobytes()
        if key not in self._kept:
            self._kept[key] = step, computed(model, mapper, family)
        return self._kept[key][1]
