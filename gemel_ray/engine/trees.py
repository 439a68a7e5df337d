"""Prefix trees on the engine's device: what a step needs of them, and which of them are open.

Knows nothing of vLLM: constraint.py does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gemel_ray.knowledge.prefix_tree import PrefixTree

UNCONSTRAINED = -1
WIDE = 1024  # children: few nodes have so many, but every mention begins at one of them
Write = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, tokens, and what stands there
_IDLE = 100  # steps after which a tree that no request names any more is dropped


class TreeScores:
    """The prefix tree's arrays on the engine's device, and what a step needs of them."""

    def __init__(self, tree: PrefixTree, device: torch.device, wide: int = WIDE) -> None:
        # int64 indices on the CPU would double the memory that processes share: cast per step.
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first_child = torch.from_numpy(np.asarray(tree.first_child)).to(device)
        self._wide, self._tokens = wide, dict[int, torch.Tensor]()  # of the wide nodes' children, once met

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
        whole = None if bool(renormalise.all()) else torch.logsumexp(logits[rows], dim=-1)
        count = self.first_child[nodes + 1].long() - self.first_child[nodes].long()
        narrow = torch.nonzero(count < self._wide).squeeze(1)
        writes = [self._narrow(logits, rows, nodes, count, narrow, renormalise, whole)]
        for node in nodes[count >= self._wide].unique().tolist():
            here = torch.nonzero(nodes == node).squeeze(1)
            writes.append(self._at_wide(logits, rows, node, here, renormalise, whole))
        logits[rows] = -torch.inf
        for row, token, value in writes:
            logits[row, token] = value

    def _narrow(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        nodes: torch.Tensor,
        count: torch.Tensor,
        chosen: torch.Tensor,
        renormalise: torch.Tensor,
        whole: torch.Tensor | None,
    ) -> Write:
        """Of the `chosen` of `rows`: all their children side by side in one list. A leaf, seen when a
        finished request is still in the batch, has none."""
        first, count = self.first_child[nodes[chosen]].long(), count[chosen]
        which = torch.repeat_interleave(torch.arange(len(chosen), device=rows.device), count)
        before = torch.cumsum(count, 0) - count
        child = torch.arange(len(which), device=rows.device) - before[which] + first[which]
        row, token = rows[chosen][which], self.token[child].long()
        allowed = logits[row, token]
        most = allowed.new_full((len(chosen),), -torch.inf).scatter_reduce(0, which, allowed, "amax")
        total = torch.zeros_like(most).index_add(0, which, (allowed - most[which]).exp())
        within = most + total.log()
        if whole is not None:
            within = torch.where(renormalise[chosen], within, whole[chosen])
        return row, token, allowed - within[which]

    def _at_wide(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        node: int,
        chosen: torch.Tensor,
        renormalise: torch.Tensor,
        whole: torch.Tensor | None,
    ) -> Write:
        """Of the `chosen` of `rows`, all at one node of very many children, as the root is: its tokens are
        made ready once, and a row's are taken as a block."""
        if node not in self._tokens:
            children = slice(int(self.first_child[node]), int(self.first_child[node + 1]))
            self._tokens[node] = self.token[children].long()
        token, row = self._tokens[node], rows[chosen]
        allowed = logits[row].index_select(1, token)
        within = torch.logsumexp(allowed, dim=-1)
        if whole is not None:
            within = torch.where(renormalise[chosen], within, whole[chosen])
        return row[:, None], token[None], allowed - within[:, None]


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
