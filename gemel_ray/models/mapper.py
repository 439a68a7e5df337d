"""The feature mapper: one linear layer from a CLIP image feature to a visual prefix (paper, section 3.1).

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


class FeatureMapper(nn.Module):
    """Features [n, feature] to prefixes [n, prefix, width], in float32."""

    def __init__(self, feature: int, prefix: int, width: int) -> None:
        super().__init__()
        self.prefix, self.width = prefix, width
        self.linear = nn.Linear(feature, prefix * width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(features.float())
        return out.view(-1, self.prefix, self.width)

    def save(self, path: Path, **about: Any) -> None:
        """Write the weights and what they are for (models' names and revisions, training figures)."""
        facts = {"prefix": self.prefix, "width": self.width, "feature": self.linear.in_features, **about}
        weights = {"weight": self.linear.weight.data.contiguous(), "bias": self.linear.bias.data}
        temporary = path.with_suffix(".part")
        save_file(weights, temporary, metadata={"mapper": json.dumps(facts)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple[FeatureMapper, dict[str, Any]]:
        """The mapper and what was recorded with it. Raises ValueError naming the file."""
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["mapper"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            mapper = cls(weight.shape[1], facts["prefix"], facts["width"])
            mapper.linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as fault:
            raise ValueError(f"{path} is not a feature mapper written by gemel-ray: {fault}") from fault
        return mapper.eval().requires_grad_(False), facts
