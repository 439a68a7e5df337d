"""Mentions by a token-classification model of the hub or in a folder: any that tags named entities.

transformers' pipeline joins tokens to words and words to spans, counts characters, and reads long texts in
overlapping windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemel_ray.errors import Mistake
from gemel_ray.readers.fields import Span

_STRIDE = 32  # tokens that two windows of a long text share


class Tagger:
    """`least`: the lowest probability of a span. Raises ValueError if there is no such model."""

    def __init__(self, model: str, device: str, batch: int, least: float) -> None:
        from transformers import pipeline

        from gemel_ray.models.encoders import torch_device

        try:
            self._tag: Any = pipeline(
                "token-classification",
                model=model,
                aggregation_strategy="first",
                stride=_STRIDE,
                device=torch_device(device),
            )
        except (OSError, ValueError) as fault:
            raise Mistake(f"detect.model {model} cannot be loaded: {fault}") from fault
        self._batch, self._least = batch, least

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text."""
        found = self._tag(list(texts), batch_size=self._batch) if texts else []
        return [[(tag["start"], tag["end"]) for tag in tags if tag["score"] >= self._least] for tags in found]
