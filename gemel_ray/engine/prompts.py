"""Prompts as the engine takes them: embeddings of token ids, with visual prefixes in their places.

Built in the engine's own process. The prefixes of the bank's pictures are computed once, in one
pass: equal prompts must be equal to the byte, or the engine's prefix cache does not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from gemel_ray.knowledge.bank import Bank
    from gemel_ray.models.mapper import FeatureMapper

QUERY_IMAGE = -1
_CHUNK = 4096


def image_of(row: int) -> int:
    """How a prompt refers to the picture of row `row` of the bank."""
    return -2 - row


class PromptEmbeddings:
    """`embed` gives the language model's embeddings of ids, [n, width]; `mapper` None: no prefixes."""

    def __init__(
        self,
        embed: Callable[[Sequence[int] | npt.NDArray[np.int64]], torch.Tensor],
        mapper: FeatureMapper | None,
        bank: Bank,
        former: PromptEmbeddings | None = None,
    ) -> None:
        self._embed, self._mapper, self._bank = embed, mapper, bank
        self._dtype = embed([0]).dtype
        self._prefixes = self._all_mapped(former) if mapper is not None else None

    def _all_mapped(self, former: PromptEmbeddings | None) -> torch.Tensor:
        """The prefixes of the bank's pictures. A bank's next version has its new ones behind the others."""
        vectors = self._bank.image_vectors
        if former is None or former._prefixes is None or not _same(self._mapper, former._mapper):
            return self._mapped(vectors)
        known = former._bank.image_vectors
        if not np.array_equal(vectors[: len(known)], known):
            return self._mapped(vectors)
        new = vectors[len(known) :]
        return torch.cat([former._prefixes, self._mapped(new)]) if len(new) else former._prefixes

    def _mapped(self, vectors: npt.NDArray[np.float32]) -> torch.Tensor:
        assert self._mapper is not None
        with torch.inference_mode():
            parts = [
                self._mapper(torch.from_numpy(np.array(vectors[i : i + _CHUNK], np.float32))).to(self._dtype)
                for i in range(0, len(vectors), _CHUNK)
            ]
        return torch.cat(parts) if parts else torch.empty(0)

    def __call__(self, prompt: Sequence[int], image: npt.NDArray[np.float32] | None) -> torch.Tensor:
        """Embeddings [tokens, width] of a prompt as Assemble writes it; `image` is the query's feature."""
        ids = np.asarray(prompt, np.int64)
        places = np.flatnonzero(ids < 0)
        parts: list[torch.Tensor] = []
        done = 0
        for place in places:
            parts += [self._embed(ids[done:place]), self._prefix(int(ids[place]), image)]
            done = int(place) + 1
        return torch.cat([*parts, self._embed(ids[done:])])

    def _prefix(self, reference: int, image: npt.NDArray[np.float32] | None) -> torch.Tensor:
        assert self._prefixes is not None
        if reference == QUERY_IMAGE:
            assert image is not None
            return self._mapped(image[None])[0]
        return self._prefixes[self._bank.image_row(image_of(reference))]

    def extended(self, embeddings: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        """`embeddings` with the tokens of `path` behind them."""
        return torch.cat([embeddings, self._embed(path)]) if path else embeddings


def _same(one: FeatureMapper | None, other: FeatureMapper | None) -> bool:
    """Whether both write the same prefixes."""
    if one is None or other is None:
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
