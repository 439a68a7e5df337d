"""Prefix trees as a constraint in vLLM: one batched operation per step and tree, for both model runners.

vLLM has two model runners with two interfaces for logits processors. `TreeScores` is the
algorithm; `TreeConstraintV1` and `TreeConstraintV2` only find the node that each row has reached.
The processor returns not logits but the log-probabilities of the tokens that the tree allows, minus
infinity for others; with `logprobs_mode="processed_logits"` the engine returns them.

A request asks for it by `SamplingParams.extra_args`:
    tree        str   the folder of the tree; every worker process maps it at the first use
    tree_node   int   the node at the end of the prompt
    tree_renormalise bool  False: log-softmax over the whole vocabulary, as the paper's code scores;
                           True: renormalised over the tokens that the tree allows at this step
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.prefix_tree import PrefixTree

if TYPE_CHECKING:
    from vllm.config import VllmConfig

UNCONSTRAINED = -1
WIDE = 1024  # children: few nodes have as many, but every mention begins at one of them
Write = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, tokens, values
_IDLE = 100  # steps after which an unused tree is dropped


class TreeScores:
    """The arrays of a prefix tree on the engine's device, and the operations of a step."""

    def __init__(self, tree: PrefixTree, device: torch.device, wide: int = WIDE) -> None:
        # int64 indices on the CPU would double the memory that processes share: cast per step.
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first_child = torch.from_numpy(np.asarray(tree.first_child)).to(device)
        self._wide, self._tokens = (
            wide,
            dict[int, torch.Tensor](),
        )  # of the wide nodes' children, computed once

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The children of `nodes` for `tokens`, int64 [rows] each; UNCONSTRAINED if there is none.

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
            writes.append(self._wide_node(logits, rows, node, here, renormalise, whole))
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
        """The scores of the `chosen` of `rows`, with all their children in one list. A leaf, of a finished
        request that is still in the batch, has none."""
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

    def _wide_node(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        node: int,
        chosen: torch.Tensor,
        renormalise: torch.Tensor,
        whole: torch.Tensor | None,
    ) -> Write:
        """The scores of the `chosen` of `rows`, all at one node with very many children, as the root: its
        tokens are prepared once, and those of a row are a block."""
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
    """The trees of requests, by folder: opened at the first use, dropped after some steps without use.
    Dropping is always safe: a tree that is used again is opened again."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._step = device, 0
        self._open: dict[str, tuple[PrefixTree, TreeScores]] = {}
        self._used: dict[str, int] = {}  # the step of the last use

    def __getitem__(self, folder: str) -> tuple[PrefixTree, TreeScores]:
        if folder not in self._open:
            tree = PrefixTree.open(Path(folder))
            self._open[folder] = tree, TreeScores(tree, self._device)
        self._used[folder] = self._step
        return self._open[folder]

    def __len__(self) -> int:
        return len(self._open)

    def end_step(self) -> None:
        """Count a step, and drop unused trees."""
        self._step += 1
        for folder in [f for f, step in self._used.items() if step < self._step - _IDLE]:
            del self._open[folder], self._used[folder]


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """The constraint of a request."""

    tree: str
    node: int
    renormalise: bool

    @classmethod
    def of(cls, params: SamplingParams) -> TreeOptions | None:
        """The constraint of these parameters, or None. Raises ValueError for an invalid one."""
        extra: dict[str, Any] = params.extra_args or {}
        if "tree" not in extra and "tree_node" not in extra:
            return None
        asked: list[Any] = [extra.get(name) for name in ("tree", "tree_node", "tree_renormalise")]
        if [type(value) for value in asked] != [str, int, bool] or extra["tree_node"] < 0:
            raise Mistake(f"extra_args: tree, tree_node and tree_renormalise cannot be {asked}")
        return cls(*asked)


class _Cursor:
    """The node of one request of the V1 runner; `output` is the runner's list, to which it appends tokens."""

    def __init__(self, want: TreeOptions, output: list[int]) -> None:
        self.want, self.node, self.output, self.seen = want, want.node, output, 0

    def advance(self, tree: PrefixTree) -> int:
        while self.seen < len(self.output) and self.node >= 0:
            self.node = tree.step(self.node, self.output[self.seen])
            self.seen += 1
        return self.node


class TreeConstraintV1(LogitsProcessorV1):
    """For the first model runner (CPU, and GPUs without Triton): the host walks the trees."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.trees = Trees(device)
        self.cursors: dict[int, _Cursor] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        TreeOptions.of(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.cursors.pop(index, None)
        for index, params, _, output in batch_update.added:
            self.cursors.pop(index, None)
            if (want := TreeOptions.of(params)) is not None:
                self.cursors[index] = _Cursor(want, output)
        for source, target, direction in batch_update.moved:
            moved, displaced = self.cursors.pop(source, None), self.cursors.pop(target, None)
            if moved is not None:
                self.cursors[target] = moved
            if displaced is not None and direction == MoveDirectionality.SWAP:
                self.cursors[source] = displaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for folder in {cursor.want.tree for cursor in self.cursors.values()}:
            tree, scores = self.trees[folder]
            of_tree = {row: c for row, c in self.cursors.items() if c.want.tree == folder}
            at = {row: node for row, cursor in of_tree.items() if (node := cursor.advance(tree)) >= 0}
            if at:
                scores.score(
                    logits,
                    torch.tensor(list(at), device=logits.device),
                    torch.tensor(list(at.values()), device=logits.device),
                    torch.tensor([of_tree[row].want.renormalise for row in at], device=logits.device),
                )
        self.trees.end_step()
        return logits


class TreeConstraintV2(LogitsProcessorV2):
    """For the second model runner (GPUs): tokens stay on the device, and so does the walk."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        device, slots = req_states.device, req_states.max_num_reqs
        self.states, self.trees = req_states, Trees(device)
        self.folders: dict[str, int] = {}  # numbers of the trees used so far
        self.node = torch.full((slots,), UNCONSTRAINED, dtype=torch.int64, device=device)
        self.tree = torch.full(
            (slots,), UNCONSTRAINED, dtype=torch.int64, device=device
        )  # the number of its tree ...
        self.tree_np = np.full(slots, UNCONSTRAINED)  # ... and on the host
        self.renormalise = torch.zeros(slots, dtype=torch.bool, device=device)
        self.seen = np.zeros(slots, dtype=np.int64)  # output tokens already followed, on the host

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        TreeOptions.of(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        want = TreeOptions.of(sampling_params)
        tree, node, renormalise = UNCONSTRAINED, UNCONSTRAINED, False
        if want is not None:
            tree = self.folders.setdefault(want.tree, len(self.folders))
            node, renormalise = want.node, want.renormalise
        self.seen[req_idx], self.tree_np[req_idx], self.tree[req_idx] = 0, tree, tree
        self.node[req_idx], self.renormalise[req_idx] = node, renormalise
        return want is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        slots = ctx.idx_mapping_np
        # Under a full CUDA graph the lengths are padded to the graph's size.
        lengths = ctx.seq_lens_upper_bound_np[: len(slots)]
        written = np.maximum(lengths - self.states.prompt_len.np[slots], 0)
        new = np.where(self.tree_np[slots] >= 0, written - self.seen[slots], 0)
        slot_of_row = ctx.expanded_idx_mapping.long()
        for folder, number in self.folders.items():
            of_tree = self.tree_np[slots] == number
            if not of_tree.any():
                continue
            _, scores = self.trees[folder]
            self._walk(scores, ctx, np.where(of_tree, new, 0))
            here = (self.tree[slot_of_row] == number) & (self.node[slot_of_row] >= 0)
            rows = torch.nonzero(here).squeeze(1)
            if len(rows):
                slot = slot_of_row[rows]
                scores.score(logits, rows, self.node[slot], self.renormalise[slot])
        self.seen[slots] += new
        self.trees.end_step()
        return logits

    def _walk(self, scores: TreeScores, ctx: LogitsContext, new: npt.NDArray[np.int64]) -> None:
        """Move the requests along their `new` tokens, int64 [requests]."""
        slots, on_device = ctx.idx_mapping_np, ctx.idx_mapping.long()
        for i in range(int(new.max(initial=0))):  # 1, but for a request resumed after preemption
            # Which rows still have an i-th new token is known on the host: one small copy.
            walking = on_device[torch.from_numpy(np.flatnonzero(new > i)).to(on_device.device)]
            offset = torch.from_numpy((self.seen[slots] + i)[new > i]).to(on_device.device)
            position = self.states.prompt_len.gpu[walking].long() + offset
            token = self.states.all_token_ids.gpu[walking, position]
            self.node[walking] = scores.step(self.node[walking], token)
