"""The loss: minus the log-probability of a target's tokens behind its prompt, under the frozen model.

Gradients reach the visual prefixes and end there; the head is computed at the target's positions only. What
prompts begin with alike is computed once (packing.py) by a model that attention.py fits. For any other, rows
are padded behind their end and without a mask: under a causal model what stands before never sees it, and a
mask would keep attention from its fast kernel (ten times slower in bfloat16 on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import Cache

from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training import attention
from gemel_ray.training.attention import Unfit
from gemel_ray.training.examples import Example
from gemel_ray.training.packing import Family, Ids, Pack, families, packs, positions, rows_of

Part = tuple[list[int], torch.Tensor]  # examples, and the losses of their target tokens, float32 [tokens]

# Nats. Losses of made-up prompts are around 10; in bfloat16 another order of sums moves them by up to 0.4,
# and keys of the wrong tokens by 12.
_ROUNDING = 1.0


def losses(
    model: Any,
    mapper: FeatureMapper,
    examples: Sequence[Example],
    tokens: int,
    trunk_of: Callable[[Family], Cache] | None = None,
) -> Iterator[Part]:
    """Of all examples, in nats, `tokens` positions computed at once; `trunk_of` gives what is known
    already of a beginning that several share."""
    if attention.used_by(model):
        for family in families(examples, mapper.prefix):
            trunk = trunk_of(family) if trunk_of and len(family.trunk) else None
            for pack in rows_of(family, tokens, behind=trunk is not None):
                yield pack.members, _of_pack(model, mapper, pack, examples, trunk)
        return
    for part in micro_batches(examples, trained_length(mapper.prefix), tokens):
        yield part, _of_rows(model, mapper, [examples[i] for i in part])


@torch.no_grad()
def share_beginnings(model: Any, mapper: FeatureMapper) -> str | None:
    """Let `model` compute once what prompts begin with alike; why not, where its attention does not fit.
    Two made-up prompts must have the losses that they have alone."""
    before = model.config._attn_implementation
    pictures = np.zeros((2, mapper.linear.in_features), np.float32)
    made_up = [Example([-2, *range(3, 9), -1, last], pictures, [5, 4]) for last in (9, 2)]
    apart = torch.cat([_of_rows(model, mapper, [e]) for e in made_up])
    try:
        if not model._supports_attention_backend:
            raise Unfit("an attention of its own")
        model.set_attn_implementation(attention.NAME)
        pack = next(packs(made_up, mapper.prefix, 10**6))
        worst = (_of_pack(model, mapper, pack, made_up) - apart).abs().max().item()
        if not worst < (1e-3 if model.dtype == torch.float32 else _ROUNDING):
            raise Unfit(f"losses that differ by {worst:.3f}")
    except Unfit as why:
        model.set_attn_implementation(before)
        return str(why)
    return None


def _of_pack(
    model: Any, mapper: FeatureMapper, pack: Pack, examples: Sequence[Example], trunk: Cache | None = None
) -> torch.Tensor:
    inputs = embedded(model, mapper, [pack.ids], pack.features)
    places = torch.from_numpy(pack.places)[None].to(inputs.device)
    targets = [examples[i].target for i in pack.members]
    columns = np.concatenate(
        [end - len(t) + np.arange(len(t)) for end, t in zip(pack.ends, targets, strict=True)]
    )
    with _head_at(model, torch.zeros(len(columns), dtype=torch.long), torch.from_numpy(columns)):
        out = model(inputs_embeds=inputs, position_ids=places, use_cache=False, pack=pack, trunk=trunk)
    return _cross_entropy(out.logits[0], targets)


def _of_rows(model: Any, mapper: FeatureMapper, examples: Sequence[Example]) -> torch.Tensor:
    rows = [positions([*e.prompt, *e.target[:-1]], mapper.prefix) for e in examples]
    inputs = embedded(model, mapper, rows, [e.features for e in examples])
    targets = [e.target for e in examples]
    row = np.repeat(np.arange(len(rows)), [len(t) for t in targets])
    column = np.concatenate([len(r) - len(t) + np.arange(len(t)) for r, t in zip(rows, targets, strict=True)])
    with _head_at(model, torch.from_numpy(row), torch.from_numpy(column)):
        out = model(inputs_embeds=inputs, use_cache=False)
    return _cross_entropy(out.logits[0], targets)


def _cross_entropy(logits: torch.Tensor, targets: Sequence[Sequence[int]]) -> torch.Tensor:
    wanted = torch.tensor([t for target in targets for t in target], device=logits.device)
    return cross_entropy(logits.float(), wanted, reduction="none")


def embedded(
    model: Any,
    mapper: FeatureMapper,
    rows: Sequence[Ids],
    features: Sequence[npt.NDArray[np.float32]],
    *,
    left: bool = False,
) -> torch.Tensor:
    """Embeddings [rows, longest, width] of `rows`, whose places of pictures are -1 and whose pictures'
    features stand in `features`, in order; padded behind, or (`left`) before, with token 0."""
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
    prefixes = mapper(torch.from_numpy(np.concatenate([f for f in features if len(f)])).to(device)).flatten(
        0, 1
    )
    return out.index_put((ids < 0).nonzero(as_tuple=True), prefixes.to(out.dtype))


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
    found = [0.0] * len(examples)
    for members, part in losses(model, mapper, examples, tokens):
        sizes = [len(examples[i].target) for i in members]
        for at, own in zip(members, part.split(sizes), strict=True):
            found[at] = own.mean().item()
    return found
