"""A prefix tree's arrays as tensors on the engine's device, for searches that never leave it.

Knows nothing of vLLM.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gemel_ray.knowledge.prefix_tree import PrefixTree


class FlatTree:
    """token int32 [nodes]; first int32 [nodes + 1], as in PrefixTree; single bool [nodes]: whether one name
    only is left behind a node, so that nothing is to be asked any more."""

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        first = np.asarray(tree.first_child)
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first = torch.from_numpy(first).to(device)
        self.single = torch.from_numpy(_single(first)).to(device)
        self.depth, self.fan = tree.depth, int(first[1] - first[0])  # the longest name; the root's children

    def children(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """The first child of each node, and how many it has."""
        first = self.first[node].long()
        return first, self.first[node + 1].long() - first


def _single(first: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Of each node. Nodes are numbered level by level, so that the last level is settled first."""
    levels = [0, 1]
    while levels[-1] < len(first) - 1:
        levels.append(int(first[levels[-1]]))
    single = np.empty(len(first) - 1, np.bool_)
    for low, end in reversed(list(pairwise(levels))):
        fan = np.diff(first[low : end + 1])
        single[low:end] = fan == 0
        chain = low + np.flatnonzero(fan == 1)
        single[chain] = single[first[chain]]
    return single
