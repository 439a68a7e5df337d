"""The feature mapper: from a CLIP image feature to a visual prefix; one linear layer (paper, section 3.1).

It is the only trained part. Kept as safetensors in float32, with the models it belongs to recorded
beside the weights. Knows nothing of how it is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu

from gemel_ray import storage
from gemel_ray.errors import Mistake


class FeatureMapper(nn.Module):
    """Features [n, feature] to prefixes [n, prefix, width], in float32.

    `hidden` > 0 adds a hidden layer of that width with GELU beside the linear one. Its contribution is zero
    at first, so that training begins where the linear mapper, warm start included, begins.
    """

    def __init__(self, feature: int, prefix: int, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.prefix, self.width, self.hidden = prefix, width, hidden
        self.linear = nn.Linear(feature, prefix * width)
        if hidden:
            self.inner = nn.Linear(feature, hidden)
            self.outer = nn.Linear(hidden, prefix * width, bias=False)
            nn.init.zeros_(self.outer.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.float()
        out: torch.Tensor = self.linear(features)
        if self.hidden:
            out = out + self.outer(gelu(self.inner(features)))
        return out.view(-1, self.prefix, self.width)

    def save(self, path: Path, **about: Any) -> None:
        """Write the weights and what they are for (models' names and revisions, training figures). The
        linear layer's are `weight` and `bias`."""
        facts = {"prefix": self.prefix, "width": self.width, "feature": self.linear.in_features, **about}
        if self.hidden:
            facts["hidden"] = self.hidden
        weights = {n.removeprefix("linear."): w.contiguous() for n, w in self.state_dict().items()}
        with storage.replacing(path) as aside:
            save_file(weights, aside, metadata={"mapper": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> tuple[FeatureMapper, dict[str, Any]]:
        """The mapper and what was recorded with it. Raises ValueError naming the file."""
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["mapper"])
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            linear = {f"linear.{name}": weights.pop(name) for name in ("weight", "bias")}
            feature = linear["linear.weight"].shape[1]
            mapper = cls(feature, facts["prefix"], facts["width"], facts.get("hidden", 0))
            mapper.load_state_dict(linear | weights)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as fault:
            raise Mistake(f"{path} is not a feature mapper written by gemel-ray: {fault}") from fault
        return mapper.eval().requires_grad_(False), facts


def prefix_of(path: Path) -> int:
    """The prefix length of the mapper in this file, without reading its weights."""
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["mapper"])["prefix"])
