"""The beam search of many mentions in lock step, as tensor operations: no model, no cache, no vLLM.

Every mention has a *column*; in a round all live beams of all columns grow by one token. The rule is that
of search.py (Hugging Face's): of the best 2 x width continuations those among the first width that end a
name are finished, and the first width that do not end live on. Every operation has a fixed shape and state
is written in place, so that a round can be replayed as a CUDA graph; nothing is read by the host but what
`packed_result` gathers.

    growing.begin(columns, listed)                  # their prompts have been read
    growing.answer(column, beam, child, scores)     # the model's scores for the beams that were `pending`
    said = RoundResult.of(growing.round().numpy(), width)  # the next token of all, and the new state

A beam lives in a *place*, which represents the keys and values of its tokens. The first child of a beam stays
in its place, its siblings move to free ones, which have to be filled. A beam with only one possible name
needs no more scores and no place, unless scores are over the whole vocabulary.

Names that are listed for a column are judged instead of searched: beams follow only these names, all of which
are finished, and names with a common beginning are one beam until they fork. Their scores are those of a
search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree

NEVER = -torch.inf
_ANY = -2  # instead of a listed node: every child may follow
Whole = npt.NDArray[np.int64]


class FlatTree:
    """A prefix tree's arrays as tensors on the engine's device.

    token int32 [nodes]; first int32 [nodes + 1], as in PrefixTree; single bool [nodes]: whether only one name
    continues a node, so that no scores are needed.
    """

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        first = np.asarray(tree.first_child)
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first = torch.from_numpy(first).to(device)
        self.single = torch.from_numpy(_single(first)).to(device)
        self.depth, self.fan = tree.depth, int(first[1] - first[0])  # the longest name; the root's children
        self._tree = tree

    def children(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """The first child of each node, and the number of its children."""
        first = self.first[node].long()
        return first, self.first[node + 1].long() - first

    def following(self, node: Tensor) -> Tensor:
        """The tokens that may follow any of these nodes, sorted; on a CPU only, since their number depends on
        values."""
        first, fan = self.children(node.unique())  # many are at the root, which has the most children
        begins = first.repeat_interleave(fan)
        number = torch.arange(len(begins)) - (fan.cumsum(0) - fan).repeat_interleave(fan)
        return self.token[begins + number].unique().long()

    def listed(self, names: Sequence[Sequence[int]], width: int) -> Whole:
        """The nodes of the names that are judged in each column of a Growing, from their leaves: [columns,
        depth, width]. In a column without such names, every name may be written."""
        made = np.full((len(names), self.depth, width), NOWHERE, np.int64)
        for column, leaves in zip(made, names, strict=True):
            column[:] = NOWHERE if leaves else _ANY
            for at, leaf in enumerate(leaves):
                nodes = self._tree.nodes(leaf)
                column[: len(nodes), at] = nodes
        return made


def _single(first: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Whether only one name continues each node. Nodes are numbered level by level: the last level comes
    first."""
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


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The result of a round on the host. [columns, width] unless another shape is given."""

    widest: int  # the greatest number of children of a pending node
    pending: Whole  # tokens to be computed of a beam; 0: none
    cached: Whole  # tokens whose keys and values are computed
    place: Whole
    source: Whole  # the place from which a beam's place has to be filled; -1: none
    alive: npt.NDArray[np.bool_]  # [columns]
    broken: npt.NDArray[np.bool_]  # [columns]: a number is not finite
    found: npt.NDArray[np.float64]  # [columns, 3, width]: leaf, log-probability, score, best first

    @classmethod
    def of(cls, packed: npt.NDArray[np.float64], width: int) -> RoundResult:
        table = packed[1:].reshape(7 * width + 2, -1).T  # by column
        beams = table[:, : 4 * width].astype(np.int64).reshape(-1, 4, width)
        pending, cached, place, source = beams.swapaxes(0, 1)
        alive, broken = table[:, -2:].T > 0
        found = table[:, 4 * width : 7 * width].reshape(-1, 3, width)
        return cls(int(packed[0]), pending, cached, place, source, alive, broken, found)


class Growing:
    """The beams of `columns` mentions, `width` each. Without `renormalise` a forced token needs scores, too.

    node, place, cached, pending int64 and log_prob float64 [columns, width]: the beams. A dead one has
    log-probability -inf and is at node 0. path int64 [columns, width, depth]; length int64 [columns, 1].
    leaf int64, total and score float64 [columns, width]: names, best first, score -inf where none is.
    child int64, more float64 [columns, width, 2 x width]: the continuations of every beam.
    listed int64 [columns, depth, width]: see FlatTree.listed.
    """

    def __init__(
        self, tree: FlatTree, columns: int, width: int, *, penalty: float, renormalise: bool
    ) -> None:
        self.tree, self.columns, self.width = tree, columns, width
        self.penalty, self.renormalise = penalty, renormalise
        device = tree.token.device

        def whole(*shape: int) -> Tensor:
            return torch.zeros(columns, *shape, dtype=torch.int64, device=device)

        def real(*shape: int) -> Tensor:
            return torch.full((columns, *shape), NEVER, dtype=torch.float64, device=device)

        self.node, self.log_prob, self.length = whole(width), real(width), whole(1)
        self.place, self.source = whole(width), whole(width)
        self.cached, self.pending, self.path = whole(width), whole(width), whole(width, tree.depth)
        self.leaf, self.total, self.score = whole(width), real(width), real(width)
        self.child, self.more = whole(width, 2 * width), real(width, 2 * width)
        self.listed = whole(tree.depth, width).fill_(_ANY)
        self.broken = torch.zeros(columns, 1, dtype=torch.bool, device=device)

    def begin(self, columns: Tensor, listed: Tensor | None = None) -> None:
        """Begin a search in these columns: one live beam each, at the root, whose children `answer` gives
        before the next round. Former searches there end. `listed`: the names to be judged; None: a search of
        all names."""
        # A number that is assigned by an index of the device would make the host wait for it.
        for state in (self.node, self.length, self.place, self.cached, self.pending, self.broken):
            state.index_fill_(0, columns, 0)
        self.log_prob.index_fill_(0, columns, NEVER)
        self.score.index_fill_(0, columns, NEVER)
        self.log_prob[:, 0].index_fill_(0, columns, 0.0)
        if listed is None:
            self.listed.index_fill_(0, columns, _ANY)
        else:
            self.listed[columns] = listed

    def listing(self, columns: Tensor) -> Tensor:
        """The nodes to which beams of these columns may go next, [n, width]."""
        return self.listed[columns, self.length[columns, 0]]

    def answer(self, column: Tensor, beam: Tensor, child: Tensor, scores: Tensor) -> None:
        """The best 2 x width children of these beams, [n, 2 x width], and their log-probabilities."""
        self.child[column, beam], self.more[column, beam] = child, scores.double()

    def best(
        self,
        logits: Tensor,
        node: Tensor,
        widest: int,
        listed: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The arguments of `answer`, from the model's `logits` [n, vocabulary] at these nodes of at most
        `widest` children, of which only those `listed` (see `listing`). `tokens`: `logits` has only these
        columns of the vocabulary. A row with numbers that are not finite has nan as its first score."""
        first, fan = self.tree.children(node)
        index = torch.arange(max(widest, 2 * self.width), device=logits.device)
        child = (first[:, None] + index).clamp_(max=len(self.tree.token) - 1)
        place = self.tree.token[child].long().clamp_(min=0)
        if tokens is not None:
            place = torch.searchsorted(tokens, place).clamp_(max=len(tokens) - 1)
        allowed = logits.gather(1, place).float()
        allowed.masked_fill_(index >= fan[:, None], NEVER)
        over = allowed if self.renormalise else logits.float()
        scores = allowed - over.logsumexp(-1, keepdim=True)
        if listed is not None:
            follows = (child[:, :, None] == listed[:, None]).any(2) | (listed[:, :1] == _ANY)
            scores = scores.masked_fill(~follows, NEVER)
        scores, at = scores.topk(2 * self.width)
        scores[:, 0].masked_fill_(~scores[:, 0].isfinite(), torch.nan)
        return child.gather(1, at), scores

    def round(self) -> Tensor:
        """Grow; the result for the host."""
        self.grow()
        return self.packed_result()

    def grow(self) -> None:
        """Take the best continuations: finish names, continue others, give them places."""
        width = self.width
        broken = self.more.isnan().any(2).any(1, keepdim=True)
        every = (self.log_prob[:, :, None] + self.more).flatten(1).masked_fill(broken, NEVER)
        total, at = (part[:, : 2 * width] for part in every.sort(dim=1, descending=True, stable=True))
        node, there = self.child.flatten(1).gather(1, at), total > NEVER
        length = self.length + there[:, :1]
        norm = length.clamp(min=1).double() ** self.penalty
        ended = there & (self.tree.children(node)[1] == 0)
        self._finish(node, total, (total / norm).masked_fill(~ended, NEVER))

        on = (ended | ~there).sort(dim=1, stable=True)[1][:, :width]  # the best that have not ended
        log_prob = total.masked_fill(ended, NEVER).gather(1, on)
        worst = self.score[:, -1:]  # -inf until `width` names are finished
        hopeless = (worst > NEVER) & (log_prob[:, :1] / norm <= worst)
        log_prob = log_prob.masked_fill(hopeless, NEVER)
        node = node.gather(1, on).masked_fill(log_prob == NEVER, 0)
        cached = torch.where(self.pending > 0, self.length, self.cached)
        self._go_on((at // (2 * width)).gather(1, on), node, log_prob, cached, length)
        self.broken |= broken

    def _finish(self, node: Tensor, total: Tensor, score: Tensor) -> None:
        """Keep the best of the names that are finished now and before. Only an end among the best `width`
        counts."""
        width = self.width
        scores = torch.cat([self.score, score[:, :width]], 1)
        best, kept = (part[:, :width] for part in scores.sort(dim=1, descending=True, stable=True))
        self.leaf.copy_(torch.cat([self.leaf, node[:, :width]], 1).gather(1, kept))
        self.total.copy_(torch.cat([self.total, total[:, :width]], 1).gather(1, kept))
        self.score.copy_(best)

    def _go_on(self, parent: Tensor, node: Tensor, log_prob: Tensor, cached: Tensor, length: Tensor) -> None:
        """Make these the live beams."""
        alive, last = log_prob > NEVER, (length - 1).clamp(min=0)[:, :, None].expand(-1, self.width, 1)
        path = self.path.gather(1, parent[:, :, None].expand_as(self.path))
        path.scatter_(2, last, self.tree.token[node].long()[:, :, None])
        needing = alive & ~self.tree.single[node] if self.renormalise else alive
        was = self.place.gather(1, parent)
        place, moved = _places(parent, was, needing)
        cached = cached.gather(1, parent)

        first, fan = self.tree.children(node)
        asking = alive & (fan > 1) if self.renormalise else alive
        for state, value in (
            (self.node, node), (self.log_prob, log_prob), (self.length, length), (self.path, path),
            (self.place, place), (self.source, torch.where(moved, was, -1)), (self.cached, cached),
            (self.pending, (length - cached) * asking),
        ):  # fmt: skip
            state.copy_(value)
        # A forced token is certain, and needs no scores.
        self.child[:, :, 0] = first
        self.more.fill_(NEVER)[:, :, 0].masked_fill_(alive & ~asking, 0.0)

    def packed_result(self) -> Tensor:
        """The result of a round in one tensor, float64 (see RoundResult)."""
        fan = self.tree.children(self.node)[1]
        numbers = torch.cat([self.pending, self.cached, self.place, self.source], 1)
        ends = torch.cat([(self.log_prob > NEVER).any(1, keepdim=True), self.broken], 1)
        found = torch.cat([self.leaf.double(), self.total, self.score], 1)
        table = torch.cat([numbers.double(), found, ends.double()], 1).T
        return torch.cat([(fan * (self.pending > 0)).max()[None].double(), table.flatten()])


def _places(parent: Tensor, was: Tensor, needing: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each beam that needs one, and whether it has to be filled: the first child of a beam keeps
    its place, its siblings get free ones. [columns, width] each."""
    width = parent.shape[1]
    elder = ((parent[:, :, None] == parent[:, None, :]) & needing[:, None, :]).tril(-1).any(2)
    stays, moves = needing & ~elder, needing & elder
    taken = torch.zeros_like(was).scatter_reduce(1, was, stays.long(), "amax")
    free = taken.sort(dim=1, stable=True)[1]  # those not taken first
    number = (moves.cumsum(1) - 1).clamp(min=0, max=width - 1)
    return torch.where(moves, free.gather(1, number), was), moves
