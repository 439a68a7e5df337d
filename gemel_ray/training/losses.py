"""The loss: minus the log-probability of a target's tokens behind its prompt, under the frozen model.

Gradients reach the visual prefixes and end there; the head is computed at the target's positions only.
Rows are padded behind their end and without a mask: under a causal model what stands before never sees it,
and a mask would keep attention from its fast kernel (ten times slower in bfloat16 on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training.examples import Example

Ids = npt.NDArray[np.int64]


def positions(prompt: Sequence[int], prefix: int) -> Ids:
    """The prompt with `prefix` places (-1) for each picture."""
    ids = np.maximum(np.asarray(prompt, np.int64), -1)
    return np.repeat(ids, np.where(ids < 0, prefix, 1))


def embedded(
    model: Any, mapper: FeatureMapper, rows: Sequence[Ids], examples: Sequence[Example], *, left: bool = False
) -> torch.Tensor:
    """Embeddings [rows, longest, width] of `rows`, whose places of pictures are -1; padded behind, or
    (`left`) before, with token 0."""
    longest = max(map(len, rows))
    padded = np.zeros((len(rows), longest), np.int64)
    for at, row in zip(padded, rows, strict=True):
        at[longest - len(row) if left else 0 :][: len(row)] = row
    embed = model.get_input_embeddings()
    device = embed.weight.device
    ids = torch.from_numpy(padded).to(device)
    out: torch.Tensor = embed(ids.clamp(min=0))
    if not (padded < 0).any():
        return out
    features = np.concatenate([e.features for e in examples if len(e.features)])
    prefixes = mapper(torch.from_numpy(features).to(device)).flatten(0, 1)
    return out.index_put((ids < 0).nonzero(as_tuple=True), prefixes.to(out.dtype))


def token_losses(model: Any, mapper: FeatureMapper, examples: Sequence[Example]) -> torch.Tensor:
    """Of all target tokens, example after example: nats, float32 [tokens]."""
    rows = [positions([*e.prompt, *e.target[:-1]], mapper.prefix) for e in examples]
    inputs = embedded(model, mapper, rows, examples)
    asked = [(i, len(r) - len(e.target)) for i, (r, e) in enumerate(zip(rows, examples, strict=True))]
    row = np.concatenate([np.full(len(examples[i].target), i) for i, _ in asked])
    column = np.concatenate([first + np.arange(len(examples[i].target)) for i, first in asked])
    with _head_at(model, torch.from_numpy(row), torch.from_numpy(column)):
        logits = model(inputs_embeds=inputs, use_cache=False).logits[0]
    targets = torch.tensor([t for e in examples for t in e.target], device=logits.device)
    return cross_entropy(logits.float(), targets, reduction="none")


@contextmanager
def _head_at(model: Any, row: torch.Tensor, column: torch.Tensor) -> Iterator[None]:
    """Inside, the head sees the hidden states of these places only, [1, places, width]. What a model does
    behind its head (Gemma 2 caps the logits, Granite and Cohere scale them) it does by itself."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][row, column][None],))
    try:
        yield
    finally:
        hook.remove()


def micro_batches(
    examples: Sequence[Example], length: Callable[[Example], int], tokens: int
) -> Iterator[list[int]]:
    """Places in `examples`, alike in length, of at most `tokens` positions with the padding; a longer example
    stands alone."""
    lengths = [length(e) for e in examples]
    part: list[int] = []
    for at in sorted(range(len(examples)), key=lambda i: (lengths[i], i)):
        if part and lengths[at] * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(at)
    if part:
        yield part


def trained_length(prefix: int) -> Callable[[Example], int]:
    """Positions that an example takes in the loss."""
    return lambda e: len(e.prompt) + len(e.features) * (prefix - 1) + len(e.target) - 1


@torch.no_grad()
def item_losses(
    model: Any, mapper: FeatureMapper, examples: Sequence[Example], *, tokens: int = 8192
) -> list[float]:
    """The mean over each example's target tokens, nats: what Hugging Face's loss is with all other labels at
    -100. `model` is a causal language model of transformers; `tokens` positions are computed at once."""
    losses = [0.0] * len(examples)
    for part in micro_batches(examples, trained_length(mapper.prefix), tokens):
        chosen = [examples[i] for i in part]
        sizes = [len(e.target) for e in chosen]
        for at, own in zip(part, token_losses(model, mapper, chosen).split(sizes), strict=True):
            losses[at] = own.mean().item()
    return losses
