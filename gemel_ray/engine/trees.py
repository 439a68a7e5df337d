"""Prefix trees on the engine's device: what a step needs of them, and which of them are open.

Knows nothing of vLLM: constraint.py does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gemel_ray.knowledge.prefix_tree import PrefixTree

UNCONSTRAINED = -1
_IDLE = 100  # steps after which a tree that no request names any more is dropped


class TreeScores:
    """The prefix tree's arrays on the engine's device, and what a step needs of them."""

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        # int64 indices on the CPU would double the memory that processes share: cast per step.
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first_child = torch.from_numpy(np.asarray(tree.first_child)).to(device)

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Children of `nodes` under `tokens`, int64 [rows] each; UNCONSTRAINED where there is none.

        A binary search in all rows at once, so that nothing leaves the device.
        """
        here = nodes.clamp(min=0)
        low, end = self.first_child[here].long(), self.first_child[here + 1].long()
        high = end
        for _ in range(int(self.token.numel()).bit_length()):
            middle = (low + high) // 2
            below = (middle < high) & (self.token[middle.clamp(max=self.token.numel() - 1)] < tokens)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < end) & (self.token[low.clamp(max=self.token.numel() - 1)] == tokens) & (nodes >= 0)
        return torch.where(found, low, UNCONSTRAINED)

    def score(
        self, logits: torch.Tensor, rows: torch.Tensor, nodes: torch.Tensor, renormalise: torch.Tensor
    ) -> None:
        """Overwrite `logits[rows]` with log-probabilities of the children of `nodes`.

        logits float32 [batch, vocabulary]; rows, nodes int64 [n]; renormalise bool [n].
        """
        first = self.first_child[nodes].long()
        count = self.first_child[nodes + 1].long() - first
        which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
        before = torch.cumsum(count, 0) - count
        child = torch.arange(len(which), device=rows.device) - before[which] + first[which]
        token = self.token[child].long()

        whole = torch.logsumexp(logits[rows], dim=-1)
        allowed = logits[rows[which], token]
        logits[rows] = -torch.inf
        logits[rows[which], token] = allowed
        # Rows of one name's leaf, seen when a finished request is still in the batch, allow nothing:
        # their sum is minus infinity and they write nothing below.
        within = torch.logsumexp(logits[rows], dim=-1)
        logits[rows[which], token] = allowed - torch.where(renormalise, within, whole)[which]


class Trees:
    """The trees that requests name, by folder: opened when first used, dropped when not used for some steps.
    Dropping is always safe: a tree that is used after all is opened again."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._step = device, 0
        self._open: dict[str, tuple[PrefixTree, TreeScores]] = {}
        self._used: dict[str, int] = {}  # in which step last

    def __getitem__(self, folder: str) -> tuple[PrefixTree, TreeScores]:
        if folder not in self._open:
            tree = PrefixTree.open(Path(folder))
            self._open[folder] = tree, TreeScores(tree, self._device)
        self._used[folder] = self._step
        return self._open[folder]

    def __len__(self) -> int:
        return len(self._open)

    def end_step(self) -> None:
        """To be called once a step."""
        self._step += 1
        for folder in [f for f, step in self._used.items() if step < self._step - _IDLE]:
            del self._open[folder], self._used[folder]
