"""Demonstrations in the very order of GEMEL's code, for results that must equal its own.

That code sorts the cosines of all examples by numpy's default sort, which keeps no order among equals: of
twenty examples with one mention, which stand in the prompt and how is decided by that sort and by the last
bits of the cosines. No index answers so; the same arithmetic on the same numbers does. It costs a pass
over the whole bank a mention (3 ms for 11,000 examples of 768 numbers). (Official code: utils.py.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.bank import Bank

Matrix = npt.NDArray[np.float32]


class PublishedOrder:
    """The bank's mention vectors as they came, at unit length."""

    def __init__(self, bank: Bank) -> None:
        self._unit = _unit(bank.mention_vectors)

    def nearest(
        self, queries: Matrix, count: int, without: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.int64]]:
        """`count` rows of the bank for each of `queries`, float32 [n, width], most similar first."""
        found = []
        for query, left_out in zip(_unit(queries), without, strict=True):
            order = np.argsort((self._unit @ query[:, None])[:, 0])
            order = order[~np.isin(order, left_out)] if left_out else order
            found.append(order[::-1][:count])
        return found


def _unit(vectors: Matrix) -> Matrix:
    """As scikit-learn's cosine_similarity scales them: to the last bit."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    lengths[lengths == 0] = 1
    return vectors / lengths[:, None]
