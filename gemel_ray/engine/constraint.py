"""The prefix tree as a constraint inside vLLM: one batched operation a step, for both model runners.

vLLM has two model runners with two interfaces for logits processors. `TreeScores` is the one
algorithm; `TreeConstraintV1` and `TreeConstraintV2` only tell it which node each row has reached.
What leaves the processor are not logits but the log-probabilities of the tokens that the tree
allows, minus infinity elsewhere; with `logprobs_mode="processed_logits"` the engine returns them.

A request asks for it by `SamplingParams.extra_args`:
    tree_node   int   the node that the prompt's own end stands at
    tree_renormalise bool  False: log-softmax over the whole vocabulary, as the paper's code scores;
                           True: renormalised over what the tree allows at this step
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from gemel_ray.knowledge.prefix_tree import PrefixTree

if TYPE_CHECKING:
    from vllm.config import VllmConfig

UNCONSTRAINED = -1


class TreeScores:
    """The prefix tree's arrays on the engine's device, and what a step needs of them."""

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        # int64 indices on the CPU would double the memory that processes share: cast per step.
        self.token = torch.from_numpy(np.asarray(tree.token)).to(device)
        self.first_child = torch.from_numpy(np.asarray(tree.first_child)).to(device)

    @classmethod
    def of_engine(cls, vllm_config: VllmConfig, device: torch.device) -> TreeScores:
        """The tree that the engine was started with, mapped in this worker process."""
        folder = vllm_config.additional_config["prefix_tree"]  # type: ignore[call-overload, index]
        return cls(PrefixTree.open(Path(folder)), device)

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


def wanted(params: SamplingParams) -> tuple[int, bool] | None:
    """The request's start node and whether to renormalise; None for a request without constraint."""
    extra: dict[str, Any] = params.extra_args or {}
    return (extra["tree_node"], extra["tree_renormalise"]) if "tree_node" in extra else None


def _validate(params: SamplingParams) -> None:
    want = wanted(params)
    if want is not None and not (isinstance(want[0], int) and want[0] >= 0 and isinstance(want[1], bool)):
        raise ValueError(f"extra_args: tree_node and tree_renormalise cannot be {want}")


class _Cursor:
    """Where one request of the V1 runner stands; `output` is the runner's own growing list."""

    def __init__(self, node: int, renormalise: bool, output: list[int]) -> None:
        self.node, self.renormalise, self.output, self.seen = node, renormalise, output, 0

    def advance(self, tree: PrefixTree) -> int:
        while self.seen < len(self.output) and self.node >= 0:
            self.node = tree.step(self.node, self.output[self.seen])
            self.seen += 1
        return self.node


class TreeConstraintV1(LogitsProcessorV1):
    """For the first model runner (CPU, and GPUs without Triton): the host walks the tree."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.tree = PrefixTree.open(Path(vllm_config.additional_config["prefix_tree"]))  # type: ignore[call-overload, index]
        self.scores = TreeScores(self.tree, device)
        self.cursors: dict[int, _Cursor] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _validate(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.cursors.pop(index, None)
        for index, params, _, output in batch_update.added:
            self.cursors.pop(index, None)
            if (want := wanted(params)) is not None:
                self.cursors[index] = _Cursor(*want, output)
        for source, target, direction in batch_update.moved:
            moved, displaced = self.cursors.pop(source, None), self.cursors.pop(target, None)
            if moved is not None:
                self.cursors[target] = moved
            if displaced is not None and direction == MoveDirectionality.SWAP:
                self.cursors[source] = displaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        at = {row: node for row, c in self.cursors.items() if (node := c.advance(self.tree)) >= 0}
        if at:
            device = logits.device
            self.scores.score(
                logits,
                torch.tensor(list(at), device=device),
                torch.tensor(list(at.values()), device=device),
                torch.tensor([self.cursors[row].renormalise for row in at], device=device),
            )
        return logits


class TreeConstraintV2(LogitsProcessorV2):
    """For the second model runner (GPUs): tokens stay on the device, and so does the walk."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self.scores = TreeScores.of_engine(vllm_config, req_states.device)
        self.states = req_states
        slots = req_states.max_num_reqs
        self.node = torch.full((slots,), UNCONSTRAINED, dtype=torch.int64, device=req_states.device)
        self.renormalise = torch.zeros(slots, dtype=torch.bool, device=req_states.device)
        self.seen = np.zeros(slots, dtype=np.int64)  # output tokens already walked, on the host
        self.constrained = np.zeros(slots, dtype=bool)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _validate(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        want = wanted(sampling_params)
        self.constrained[req_idx], self.seen[req_idx] = want is not None, 0
        self.node[req_idx], self.renormalise[req_idx] = want or (UNCONSTRAINED, False)
        return want is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        slots = ctx.idx_mapping_np
        # Under a full CUDA graph the lengths are padded to the graph's size.
        lengths = ctx.seq_lens_upper_bound_np[: len(slots)]
        written = np.maximum(lengths - self.states.prompt_len.np[slots], 0)
        new = np.where(self.constrained[slots], written - self.seen[slots], 0)
        on_device = ctx.idx_mapping.long()
        for i in range(int(new.max(initial=0))):  # 1, but for a request resumed after preemption
            # Which rows still have an i-th new token is known on the host: one small copy.
            walking = on_device[torch.from_numpy(np.flatnonzero(new > i)).to(on_device.device)]
            offset = torch.from_numpy((self.seen[slots] + i)[new > i]).to(on_device.device)
            position = self.states.prompt_len.gpu[walking].long() + offset
            token = self.states.all_token_ids.gpu[walking, position]
            self.node[walking] = self.scores.step(self.node[walking], token)
        self.seen[slots] += new
        slot_of_row = ctx.expanded_idx_mapping.long()
        rows = torch.nonzero(self.node[slot_of_row] >= 0).squeeze(1)
        if len(rows):
            slot = slot_of_row[rows]
            self.scores.score(logits, rows, self.node[slot], self.renormalise[slot])
        return logits
