"""Greedy decoding under the prefix tree, on the model that trains: what dev accuracy is measured with.

A row is answered as soon as the tree leaves one name, so most rows take a step or two. vLLM, which link
decodes with, would need the memory a second time. Scores are no part of it: renormalised over the tree or
not, the best child is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training.examples import Example
from gemel_ray.training.losses import embedded, micro_batches
from gemel_ray.training.packing import positions


@torch.no_grad()
def decode(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, examples: Sequence[Example], *, tokens: int = 8192
) -> list[list[int]]:
    """The tokens of each example's answer, its end-of-name token included; `tokens` positions at once."""
    answers: list[list[int]] = [[] for _ in examples]

    def length(example: Example) -> int:
        return len(example.prompt) + len(example.features) * (mapper.prefix - 1)

    for part in micro_batches(examples, length, tokens):
        found = _walk(model, mapper, tree, [examples[i] for i in part])
        for at, answer in zip(part, found, strict=True):
            answers[at] = answer
    return answers


def _walk(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, examples: Sequence[Example]
) -> list[list[int]]:
    rows = [positions(e.prompt, mapper.prefix) for e in examples]
    inputs = embedded(model, mapper, rows, [e.features for e in examples], left=True)
    lengths = torch.tensor([len(r) for r in rows], device=inputs.device)
    longest = inputs.shape[1]
    mask = torch.arange(longest, device=inputs.device)[None] >= longest - lengths[:, None]
    place = (mask.long().cumsum(1) - 1).clamp(min=0)
    walks = [_Walk(tree) for _ in examples]
    cache = None
    while True:
        out = model.base_model(
            inputs_embeds=inputs,
            attention_mask=mask.long(),
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        )
        logits = model.get_output_embeddings()(out.last_hidden_state[:, -1]).float().cpu().numpy()
        for walk, row in zip(walks, logits, strict=True):
            walk.step(row)
        if all(tree.is_leaf(walk.node) for walk in walks):
            return [walk.path for walk in walks]
        cache = out.past_key_values
        last = torch.tensor([[walk.path[-1]] for walk in walks], device=inputs.device)
        inputs, place = model.get_input_embeddings()(last), place[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


class _Walk:
    """One row's way down the tree."""

    def __init__(self, tree: PrefixTree) -> None:
        self.tree, self.node = tree, int(tree.root)
        self.path: list[int] = []

    def step(self, logits: np.ndarray) -> None:
        """To the likeliest child; to the name's end, where there is but one left."""
        first, tokens = self.tree.children(self.node)
        if len(tokens):
            self._go(first + int(np.argmax(logits[tokens])))
            self._finish()

    def _go(self, node: int) -> None:
        self.node = node
        self.path.append(int(self.tree.token[node]))

    def _finish(self) -> None:
        node = self.node
        while len(children := self.tree.children(node)[1]) == 1:
            node = self.tree.children(node)[0]
        if not len(children):
            while self.node != node:
                self._go(self.tree.children(self.node)[0])


def accuracy(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, examples: Sequence[Example], *, tokens: int = 8192
) -> float:
    """The share of examples whose answer is their target, token for token."""
    answers = decode(model, mapper, tree, examples, tokens=tokens)
    return float(np.mean([a == e.target for a, e in zip(answers, examples, strict=True)]))
