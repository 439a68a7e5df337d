"""Greedy decoding under the prefix tree, on the model in training: dev accuracy is measured with it.

A row ends as soon as only one name is possible, so most rows take one or two steps. vLLM, with which links
are decoded, would need the memory of a second model. Scores are not computed: whether or not they are
renormalised over the tree, the best child is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache

from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import attention
from gemel_ray.training.examples import Example
from gemel_ray.training.losses import embedded
from gemel_ray.training.packing import Tail, families, unshared
from gemel_ray.training.trunks import computed


@torch.no_grad()
def decode(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, examples: Sequence[Example], *, tokens: int = 8192
) -> list[list[int]]:
    """The tokens of each example's answer, with its end-of-name token; `tokens` positions at once. Common
    beginnings of prompts are computed once."""
    answers: list[list[int]] = [[] for _ in examples]
    prompts = [replace(e, target=e.target[:1]) for e in examples]  # a target's last token is not an input
    split = families if attention.used_by(model) else unshared
    for family in split(prompts, mapper.prefix):
        trunk = computed(model, mapper, family) if len(family.trunk) else None
        for tails in _parts(family.tails, tokens):
            found = _walk(model, mapper, tree, tails, trunk)
            for tail, answer in zip(tails, found, strict=True):
                answers[tail.member] = answer
    return answers


def _parts(tails: Sequence[Tail], tokens: int) -> Iterator[list[Tail]]:
    """Parts of tails with one cut each. They are sorted: the next tail is the longest so far."""
    part: list[Tail] = []
    for tail in tails:
        whole = (tail.cut + len(tail.ids)) * (len(part) + 1)
        if part and (tail.cut != part[0].cut or whole > tokens):
            yield part
            part = []
        part.append(tail)
    yield part


def _walk(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, tails: Sequence[Tail], trunk: Cache | None
) -> list[list[int]]:
    inputs = embedded(model, mapper, [t.ids for t in tails], [t.features for t in tails], left=True)
    lengths = torch.tensor([len(t.ids) for t in tails], device=inputs.device)
    longest, cut = inputs.shape[1], tails[0].cut
    real = torch.arange(longest, device=inputs.device)[None] >= longest - lengths[:, None]  # not padding
    place = (real.long().cumsum(1) - 1).clamp(min=0) + cut
    mask = torch.cat([real.new_ones(len(real), cut), real], 1)
    cache = _for_rows(trunk, cut, len(tails)) if trunk is not None and cut else None
    walks = [_Walk(tree) for _ in tails]
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


def _for_rows(trunk: Cache, cut: int, rows: int) -> Cache:
    """A new cache with the trunk's first `cut` positions for each of `rows`."""
    cache = DynamicCache()
    for at, layer in enumerate(trunk.layers):
        keys, values = (t[:, :, :cut].expand(rows, -1, -1, -1) for t in (layer.keys, layer.values))
        cache.update(keys, values, at)
    return cache


class _Walk:
    """The path of one row down the tree."""

    def __init__(self, tree: PrefixTree) -> None:
        self.tree, self.node = tree, int(tree.root)
        self.path: list[int] = []

    def step(self, logits: np.ndarray) -> None:
        """Go to the likeliest child; and to the end of the name if only one is possible."""
        first, tokens = self.tree.children(self.node)
        if len(tokens):
            self._go_to(first + int(np.argmax(logits[tokens])))
            self._finish()

    def _go_to(self, node: int) -> None:
        self.node = node
        self.path.append(int(self.tree.token[node]))

    def _finish(self) -> None:
        node = self.node
        while len(children := self.tree.children(node)[1]) == 1:
            node = self.tree.children(node)[0]
        if not len(children):
            while self.node != node:
                self._go_to(self.tree.children(self.node)[0])


def accuracy(
    model: Any, mapper: FeatureMapper, tree: PrefixTree, examples: Sequence[Example], *, tokens: int = 8192
) -> float:
    """The share of examples whose answer is their target, token for token."""
    answers = decode(model, mapper, tree, examples, tokens=tokens)
    return float(np.mean([a == e.target for a, e in zip(answers, examples, strict=True)]))
