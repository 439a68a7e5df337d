"""Prefix trees as a constraint inside vLLM: one batched operation a step and tree, for both model runners.

vLLM has two model runners with two interfaces for logits processors. `TreeScores` (trees.py) is the one
algorithm; `TreeConstraintV1` and `TreeConstraintV2` only tell it which node each row has reached.
What leaves the processor are not logits but the log-probabilities of the tokens that the tree
allows, minus infinity elsewhere; with `logprobs_mode="processed_logits"` the engine returns them.

A request asks for it by `SamplingParams.extra_args`:
    tree        str   the folder of the tree; every worker process maps it when it is first used
    tree_node   int   the node that the prompt's own end stands at
    tree_renormalise bool  False: log-softmax over the whole vocabulary, as the paper's code scores;
                           True: renormalised over what the tree allows at this step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from gemel_ray.engine.trees import UNCONSTRAINED, Trees, TreeScores
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.prefix_tree import PrefixTree

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks of the constraint."""

    tree: str
    node: int
    renormalise: bool

    @classmethod
    def of(cls, params: SamplingParams) -> Wanted | None:
        """None for a request without constraint. ValueError for one that makes no sense."""
        extra: dict[str, Any] = params.extra_args or {}
        if "tree" not in extra and "tree_node" not in extra:
            return None
        asked: list[Any] = [extra.get(name) for name in ("tree", "tree_node", "tree_renormalise")]
        if [type(value) for value in asked] != [str, int, bool] or extra["tree_node"] < 0:
            raise Mistake(f"extra_args: tree, tree_node and tree_renormalise cannot be {asked}")
        return cls(*asked)


class _Cursor:
    """Where one request of the V1 runner stands; `output` is the runner's own growing list."""

    def __init__(self, want: Wanted, output: list[int]) -> None:
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
        Wanted.of(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.cursors.pop(index, None)
        for index, params, _, output in batch_update.added:
            self.cursors.pop(index, None)
            if (want := Wanted.of(params)) is not None:
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
            own = {row: c for row, c in self.cursors.items() if c.want.tree == folder}
            at = {row: node for row, cursor in own.items() if (node := cursor.advance(tree)) >= 0}
            if at:
                scores.score(
                    logits,
                    torch.tensor(list(at), device=logits.device),
                    torch.tensor(list(at.values()), device=logits.device),
                    torch.tensor([own[row].want.renormalise for row in at], device=logits.device),
                )
        self.trees.end_step()
        return logits


class TreeConstraintV2(LogitsProcessorV2):
    """For the second model runner (GPUs): tokens stay on the device, and so does the walk."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        device, slots = req_states.device, req_states.max_num_reqs
        self.states, self.trees = req_states, Trees(device)
        self.folders: dict[str, int] = {}  # numbers of the trees named so far
        self.node = torch.full((slots,), UNCONSTRAINED, dtype=torch.int64, device=device)
        self.tree = torch.full((slots,), UNCONSTRAINED, dtype=torch.int64, device=device)  # its number ...
        self.tree_np = np.full(slots, UNCONSTRAINED)  # ... and on the host
        self.renormalise = torch.zeros(slots, dtype=torch.bool, device=device)
        self.seen = np.zeros(slots, dtype=np.int64)  # output tokens already walked, on the host

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        Wanted.of(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        want = Wanted.of(sampling_params)
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
            own = self.tree_np[slots] == number
            if not own.any():
                continue
            _, scores = self.trees[folder]
            self._walk(scores, ctx, np.where(own, new, 0))
            here = (self.tree[slot_of_row] == number) & (self.node[slot_of_row] >= 0)
            rows = torch.nonzero(here).squeeze(1)
            if len(rows):
                slot = slot_of_row[rows]
                scores.score(logits, rows, self.node[slot], self.renormalise[slot])
        self.seen[slots] += new
        self.trees.end_step()
        return logits

    def _walk(self, scores: TreeScores, ctx: LogitsContext, new: npt.NDArray[np.int64]) -> None:
        """Take the requests that have `new` tokens, int64 [requests], along them."""
        slots, on_device = ctx.idx_mapping_np, ctx.idx_mapping.long()
        for i in range(int(new.max(initial=0))):  # 1, but for a request resumed after preemption
            # Which rows still have an i-th new token is known on the host: one small copy.
            walking = on_device[torch.from_numpy(np.flatnonzero(new > i)).to(on_device.device)]
            offset = torch.from_numpy((self.seen[slots] + i)[new > i]).to(on_device.device)
            position = self.states.prompt_len.gpu[walking].long() + offset
            token = self.states.all_token_ids.gpu[walking, position]
            self.node[walking] = scores.step(self.node[walking], token)
